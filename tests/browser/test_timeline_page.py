"""The timeline of a run, as Chromium lays it out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pytest_ephemeral.pytest_plugin import timeline, timeline_svg
from pytest_ephemeral.pytest_plugin.timeline import Span

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

LIFE = [("bake", 0, 2), ("launch", 2, 2.1), ("ready", 2.1, 3), ("up", 3, 9), ("destroy", 9, 9.2)]

RUN = timeline.Timeline(
    tests=tuple(
        timeline.TestRow(worker, f"test_it.py::test_{n}", Span("passed", 1 + n, 3.5 + n), waits)
        for worker in ("gw0", "gw1")
        for n, waits in ((0, (timeline.Wait("staging-7f3k2q", 1, 3),)), (3, ()))
    ),
    environments=(
        timeline.EnvironmentRow("staging-7f3k2q", "staging", tuple(Span(*one) for one in LIFE)),
        timeline.EnvironmentRow("<b>&-7f3k2q", "x" * 60, tuple(Span(*one) for one in LIFE)),
    ),
)


@pytest.mark.skipif(CHROMIUM is None, reason="without Chromium: apt-get install chromium")
@pytest.mark.parametrize("ending", ["svg", "html"])
def test_the_timeline_has_no_overlaps(tmp_path: Path, ending: str) -> None:
    """Bars of a row are side by side, labels are left of them, and titles are plain text."""
    from playwright.sync_api import sync_playwright

    file = tmp_path / f"run.{ending}"
    timeline_svg.write(RUN, file)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 500})
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.goto(file.as_uri())
        boxes = page.eval_on_selector_all(
            "rect.bake, rect.launch, rect.ready, rect.up, rect.destroy",
            "all => all.map(one => one.getBoundingClientRect().toJSON())",
        )
        labels = page.eval_on_selector_all(
            "text", "all => all.map(one => [one.textContent, one.getBoundingClientRect().right])"
        )
        titles = page.eval_on_selector_all("rect title", "all => all.map(one => one.textContent)")
        bold = page.locator("b").count()
        browser.close()
    assert not said
    assert len(boxes) == 2 * len(LIFE)
    for one in range(len(LIFE) - 1):
        assert boxes[one]["right"] <= boxes[one + 1]["left"] + 1
    assert boxes[0]["bottom"] < boxes[len(LIFE)]["top"], "one row for each"
    rows = [right for text, right in labels if text in {"gw0", "gw1", "staging"} or "xxx" in text]
    assert len(rows) == 4
    assert max(rows) < boxes[0]["left"]
    assert all(box["right"] <= 1100 for box in boxes)
    assert "test_it.py::test_0: waited 2.00 s for staging-7f3k2q" in titles
    assert any(title.startswith("<b>&-7f3k2q: bake") for title in titles)
    assert bold == 0
