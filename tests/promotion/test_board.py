"""The board's protection: sign-in, form tokens, and text that is not trusted."""

from __future__ import annotations

import errno
import re
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.promotion.approval_records import Approvals
from pytest_ephemeral.promotion.board import app, serving
from support.board import HOSTILE, BoardStage, fill_board
from support.promotion import V1, Site

TOKEN = "a token that nobody can guess"


@pytest.fixture
def stage(served: dict[str, Site], tmp_path: Path) -> BoardStage:
    """A project with environments in all states."""
    return fill_board(tmp_path, served)


@pytest.fixture
def application(stage: BoardStage) -> Any:
    """The board of the project."""
    return app.create(stage.project, TOKEN)


@pytest.fixture
def browser(application: Any) -> Any:
    """A client that has opened the board's link."""
    client = application.test_client()
    client.get("/", query_string={"token": TOKEN})
    return client


@pytest.fixture
def decide(browser: Any) -> Callable[..., Any]:
    """Send the form of the page, with changes."""
    page = browser.get("/").text
    token = re.search(r'name="form-token" value="([^"]+)"', page)
    assert token is not None

    def send(id: str = "staging-m4x8wd", **changes: str) -> Any:
        form = {"form-token": token[1], "by": "Anna", "decision": "approved", "comment": ""}
        return browser.post(f"/decide/{id}", data={**form, **changes})

    return send


def test_the_link_signs_in_and_hides_the_token(application: Any) -> None:
    """The link sets a cookie that scripts can't read, and redirects to a URL without the token."""
    client = application.test_client()
    entered = client.get("/", query_string={"token": TOKEN})

    assert (entered.status_code, entered.location) == (303, "/")
    cookie = entered.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert TOKEN not in cookie
    assert client.get("/").status_code == 200


@pytest.mark.parametrize("query", [{}, {"token": "wrong"}, {"token": ""}, {"token": "ü"}])
@pytest.mark.parametrize("path", ["/", "/nowhere", "/decide/staging-m4x8wd"])
def test_a_missing_or_wrong_token_is_refused(
    application: Any, query: dict[str, str], path: str
) -> None:
    """The response shows nothing of the project."""
    answer = application.test_client().get(path, query_string=query)

    assert answer.status_code == 401
    assert "staging" not in answer.text


def test_a_wrong_token_is_refused_despite_a_valid_cookie(browser: Any) -> None:
    """A person who pastes a token must see whether it is valid."""
    assert browser.get("/", query_string={"token": "wrong"}).status_code == 401


def test_a_program_can_send_the_token_as_a_header(application: Any, stage: BoardStage) -> None:
    """A form token is not needed: a browser can't be made to send such a header."""
    client = application.test_client()
    headers = {"Authorization": f"Bearer {TOKEN}"}

    assert client.get("/", headers=headers).status_code == 200
    data = {"by": "robot", "decision": "rejected"}
    assert client.post("/decide/staging-m4x8wd", data=data, headers=headers).status_code == 303
    assert Approvals(stage.project.store).get("staging-m4x8wd").decided_by == "robot"
    assert client.get("/", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_a_decision_is_recorded(
    decide: Callable[..., Any], stage: BoardStage, browser: Any
) -> None:
    """The record has the name and the comment, and the next form has the name."""
    answer = decide(comment="Looks right.")

    assert (answer.status_code, answer.location) == (303, "/#decided")
    found = Approvals(stage.project.store).get("staging-m4x8wd")
    assert (found.state, found.decided_by, found.comment) == ("approved", "Anna", "Looks right.")
    stage.add("staging-again2", V1)
    stage.ask("staging-again2")
    assert 'name="by" required maxlength="80" value="Anna"' in browser.get("/").text


@pytest.mark.parametrize("changes", [{"form-token": ""}, {"form-token": "x" * 64}])
def test_a_form_of_another_site_is_refused(
    decide: Callable[..., Any], stage: BoardStage, changes: dict[str, str]
) -> None:
    """A cookie alone is not enough for a decision."""
    assert decide(**changes).status_code == 403
    assert Approvals(stage.project.store).get("staging-m4x8wd").state == "pending"


@pytest.mark.parametrize(
    "changes",
    [
        {"by": " "},
        {"decision": "timed out"},
        {"decision": ""},
        {"by": "x" * 81},
        {"comment": "x" * 2001},
    ],
)
def test_invalid_decisions_are_refused(
    decide: Callable[..., Any], stage: BoardStage, changes: dict[str, str]
) -> None:
    """The request stays pending."""
    assert decide(**changes).status_code == 400
    assert Approvals(stage.project.store).get("staging-m4x8wd").state == "pending"


def test_a_second_decision_shows_the_first(decide: Callable[..., Any], stage: BoardStage) -> None:
    """The page says that a decision can't be changed."""
    stage.decide("staging-m4x8wd", "rejected", "Bo")

    answer = decide()

    assert answer.status_code == 409
    assert "rejected by Bo" in answer.text
    assert "A decision can&#39;t be changed" in answer.text


def test_a_decision_without_a_request_is_refused(decide: Callable[..., Any]) -> None:
    """The id comes from the URL, and may be any text."""
    for id in ("nothing", "..", "%2e%2e%2fx", "a/b"):
        assert decide(id).status_code in {404, 409}


def test_all_text_is_escaped(stage: BoardStage, browser: Any, decide: Callable[..., Any]) -> None:
    """Names, comments, reasons and links come from people and from other machines."""
    stage.add(
        "staging-evil22",
        V1,
        template=HOSTILE,
        url="javascript:alert(1)",
        owner=stage.get("staging-m4x8wd").owner,
    )
    stage.ask("staging-evil22")
    decide(by=HOSTILE, comment=HOSTILE)

    page = browser.get("/").text

    assert HOSTILE not in page
    assert "&lt;script&gt;document.title" in page
    assert 'href="javascript:' not in page


def test_the_security_headers_exclude_other_sites(browser: Any) -> None:
    """The content security policy also forbids inline scripts."""
    headers = browser.get("/").headers
    policy = headers["Content-Security-Policy"]

    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "form-action 'self'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert not re.search(r"<script>|style=|onclick=", browser.get("/").text)


def test_an_unreadable_store_is_reported(
    browser: Any, stage: BoardStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status is 503, as the store may become readable again."""
    folder = stage.project.store.folder
    (folder / "promotions" / "production" / "current.json").write_text("{")

    answer = browser.get("/")

    assert answer.status_code == 503
    assert "The store can" in answer.text


def test_an_expired_request_cannot_be_decided(browser: Any, stage: BoardStage) -> None:
    """No response is a rejection, even before the time-out is recorded."""
    stage.add("staging-late22", V1)
    stage.ask("staging-late22", wait=0.001)

    page = browser.get("/").text

    assert "decide-staging-late22" not in page
    assert "timed out" in page


def test_the_token_is_created_once_and_is_private(tmp_path: Path) -> None:
    """Links stay valid when the board is started again."""
    file = tmp_path / "state" / "token"

    token = serving.token(file)

    assert len(token) >= 32
    assert serving.token(file) == token
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text("short")
    with pytest.raises(ConfigurationError, match="has no token in it"):
        serving.token(file)


def test_a_token_readable_by_others_is_refused(tmp_path: Path) -> None:
    """The error names the command that restricts the permissions."""
    file = tmp_path / "token"
    serving.token(file)
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        serving.token(file)


def test_concurrently_started_boards_share_one_token(tmp_path: Path) -> None:
    """No board reads a partly written token."""
    file = tmp_path / "state" / "token"
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: serving.token(file), range(8)))
    assert len(found) == 1
    assert len(found.pop()) >= 32


def test_a_full_disk_leaves_no_empty_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start creates a valid token."""
    file = tmp_path / "token"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pytest_ephemeral.files.os.fsync", full)
        with pytest.raises(ConfigurationError, match="No space left"):
            serving.token(file)
    assert list(tmp_path.iterdir()) == []
    assert len(serving.token(file)) >= 32


def test_a_destroyed_environment_cannot_be_approved(
    stage: BoardStage, browser: Any, decide: Callable[..., Any]
) -> None:
    """The card is last, without buttons; a form that was already open is refused."""
    stage.add("staging-late22", V1)
    stage.ask("staging-late22")
    stage.ledger.remove("staging-m4x8wd")

    page = browser.get("/").text
    assert page.index('id="decide-staging-late22"') < page.index('id="decide-staging-m4x8wd"')
    gone = page.partition('id="decide-staging-m4x8wd"')[2].partition("</article>")[0]
    assert "<button" not in gone
    answer = decide()

    assert answer.status_code == 409
    assert "can&#39;t be approved: the environment was destroyed" in answer.text
    assert Approvals(stage.project.store).get("staging-m4x8wd").state == "pending"
    assert decide(decision="rejected").status_code == 303


def test_a_production_link_needs_a_web_scheme(stage: BoardStage, browser: Any) -> None:
    """A forged journal can't put a script into the link."""
    path = "promotions/production/current.json"
    data, version = stage.project.store.read(path)
    head = msgspec.json.decode(data)
    head["current"]["url"] = "javascript:alert(1)"
    stage.project.store.replace(path, msgspec.json.encode(head), version)
    page = browser.get("/").text
    assert "javascript:alert(1)" in page
    assert 'href="javascript:' not in page
