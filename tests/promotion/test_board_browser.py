"""The board in Debian's Chromium; ``SCREENSHOTS=DIR`` saves its screenshots in a folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_ephemeral.promotion.approval_records import Approvals
from support.board import HOSTILE, BoardStage, fill_board, use_local_provider
from support.lacks import skip_without
from support.processes import PROGRAM
from support.promotion import V1, Site
from support.waiting import until

WAITING = "staging-m4x8wd"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Debian's Chromium."""
    program = shutil.which("chromium")
    if program is None:
        skip_without("Chromium", "apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Tests in a container often run as root, which Chromium's own sandbox refuses.
        made = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def stage(served: dict[str, Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BoardStage:
    """A project with environments in all states, recorded by a build machine."""
    monkeypatch.setenv("LOGNAME", "ci")
    monkeypatch.setattr("socket.gethostname", lambda: "build-7")
    return fill_board(tmp_path, served)


@pytest.fixture
def link(stage: BoardStage) -> Iterator[str]:
    """Start the board as users do, and return its link."""
    config = stage.project.config.path
    argv = [PROGRAM, "board", "--port", "0", "--config", config]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.terminate()
    process.communicate()


@pytest.fixture
def page(chromium: Any, link: str) -> Iterator[Callable[..., Any]]:
    """Open the board in a window; an error in the page fails the test."""
    contexts, wrong = [], []

    def open_it(**settings: Any) -> Any:
        context = chromium.new_context(viewport={"width": 1180, "height": 900}, **settings)
        contexts.append(context)
        made = context.new_page()
        made.set_default_timeout(15_000)
        made.on("pageerror", lambda error: wrong.append(str(error)))
        made.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        made.goto(link)
        return made

    yield open_it
    for context in contexts:
        context.close()
    assert wrong == []


def test_the_token_is_removed_from_the_url(page: Callable[..., Any]) -> None:
    """A token in the URL would appear in histories and screenshots."""
    assert "token" not in page().url


def test_a_person_approves(page: Callable[..., Any], stage: BoardStage) -> None:
    """The board shows the decision, with the name and the comment."""
    window = page()
    card = window.locator(f"#decide-{WAITING}")
    assert card.locator("a.link").get_attribute("href") == stage.get(WAITING).url
    card.get_by_label("Your name").fill("Anna Keller")
    card.get_by_label("Comment").fill("Checkout works.")

    card.get_by_role("button", name="Approve").click()

    decided = window.locator("#decided li").first
    decided.get_by_text("Checkout works.").wait_for()
    assert "Anna Keller" in decided.inner_text()
    found = Approvals(stage.project.store).get(WAITING)
    assert (found.state, found.decided_by) == ("approved", "Anna Keller")


def test_a_decision_requires_a_name(page: Callable[..., Any], stage: BoardStage) -> None:
    """The browser itself checks the field."""
    window = page()

    window.get_by_role("button", name="Reject").click()

    assert Approvals(stage.project.store).get(WAITING).state == "pending"
    assert window.get_by_label("Your name").evaluate("field => field === document.activeElement")


def test_the_page_refreshes_and_keeps_a_draft(page: Callable[..., Any], stage: BoardStage) -> None:
    """Changes by others are shown, and a comment that is being written is kept."""
    window = page()
    comment = window.locator(f"#decide-{WAITING}").get_by_label("Comment")
    comment.fill("Half a sent")
    stage.add("staging-new222", V1)

    window.get_by_role("heading", name="staging-new222").wait_for()
    stage.ledger.remove("staging-new222")
    window.get_by_role("heading", name="staging-new222").wait_for(state="detached")

    assert comment.input_value() == "Half a sent"


def test_expiries_count_down(page: Callable[..., Any]) -> None:
    """The page updates the remaining time by the second."""
    time = page().locator(f"#decide-{WAITING} time[data-until]").last
    first = time.inner_text()
    assert first.startswith("in ")
    assert until(lambda: time.inner_text() != first)


def test_deciding_works_without_scripts(page: Callable[..., Any], stage: BoardStage) -> None:
    """The page uses a plain HTML form."""
    window = page(java_script_enabled=False)
    window.get_by_label("Your name").fill("Bo")

    window.get_by_role("button", name="Reject").click()

    window.locator("#decided").get_by_text("by Bo").first.wait_for()
    assert Approvals(stage.project.store).get(WAITING).state == "rejected"


def test_hostile_text_is_shown_as_text(page: Callable[..., Any], stage: BoardStage) -> None:
    """The text is shown, and its script does not run."""
    stage.decide(WAITING, "rejected", HOSTILE, HOSTILE)

    window = page()

    window.locator("#decided").get_by_text(HOSTILE).first.wait_for()
    assert window.title() == "shop · board"


def test_everything_can_be_read_and_reached(page: Callable[..., Any]) -> None:
    """Contrast, narrow screens and the keyboard are checked."""
    for scheme in ("light", "dark"):  # a contrast of 4.5 (WCAG 2.2, 1.4.3)
        assert page(color_scheme=scheme).evaluate(FAINT) == []
    window = page()
    for width in (320, 390, 768, 1180):  # without sideways scrolling
        window.set_viewport_size({"width": width, "height": 800})
        assert window.evaluate("document.documentElement.scrollWidth") <= width
    reached = []
    for _ in range(12):
        window.keyboard.press("Tab")
        reached.append(window.evaluate("document.activeElement.textContent.trim()"))
        if reached[-1] == "Reject":
            break
    assert reached[-2:] == ["Approve", "Reject"]


def test_screenshots_are_taken_for_the_docs(
    page: Callable[..., Any], stage: BoardStage, tmp_path: Path
) -> None:
    """The pictures show the light and dark color schemes, and a phone."""
    use_local_provider(stage)
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    for name, settings, width in (
        ("board", {}, 1180),
        ("board-dark", {"color_scheme": "dark"}, 1180),
        ("board-phone", {"device_scale_factor": 2}, 390),
    ):
        window = page(**settings)
        window.set_viewport_size({"width": width, "height": 900})
        window.screenshot(path=folder / f"{name}.png", full_page=name != "board-phone")
        assert (folder / f"{name}.png").stat().st_size > 10_000


#: A script that lists the texts whose contrast is too low, with the contrast.
FAINT = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const colour = (text) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = ([r, g, b]) => [r, g, b].map((one) => one / 255)
    .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
    .reduce((sum, one, index) => sum + one * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const ground = colour(getComputedStyle(at).backgroundColor);
      if (ground[3] === 255) return ground;
    }
    return colour("white");
  };
  const faint = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || element.matches("script, .unseen, .unseen *")) continue;
    const [one, other] = [light(colour(getComputedStyle(element).color)), light(behind(element))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < 4.5) faint.push(`${texts.currentNode.data.trim()}: ${contrast.toFixed(2)}`);
  }
  return faint;
}"""
