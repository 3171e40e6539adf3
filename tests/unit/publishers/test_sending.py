"""The clients of the services, against simulated servers, with their failures."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from pytest_ephemeral.publishers import github, gitlab, outbox
from pytest_ephemeral.publishers.outbox import Outbox
from pytest_ephemeral.publishers.webhook import WebhookChannel
from support.publisher_events import URL, event
from support.publisher_services import GitHub, GitLab, Service

RATE_LIMITED = {"X-RateLimit-Remaining": "0"}


@pytest.fixture
def warnings() -> list[str]:
    """The warnings of the test."""
    return []


@pytest.fixture
def sending(warnings: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Outbox]:
    """An outbox that retries without long pauses."""
    monkeypatch.setattr(outbox, "BACKOFF", 0.01)
    box = Outbox("service", warnings.append)
    yield box
    flush(box)


def flush(box: Outbox, seconds: float = 10) -> None:
    box.close(time.monotonic() + seconds)


def settle(box: Outbox) -> None:
    """Wait until all messages are sent, without closing the outbox."""
    with box._changed:
        assert box._changed.wait_for(lambda: not box._unsent, 10)


@pytest.fixture
def hub() -> Iterator[GitHub]:
    """A simulated GitHub API that is running."""
    with (service := GitHub()).running():
        yield service


@pytest.fixture
def lab() -> Iterator[GitLab]:
    """A simulated GitLab API that is running."""
    with (service := GitLab()).running():
        yield service


@pytest.fixture
def hook() -> Iterator[Service]:
    """A running server that accepts webhooks."""
    with (service := Service(lambda *_: (200, {}, "ok"))).running():
        yield service


def deployments(box: Outbox, hub: GitHub, token: str = "secret") -> github.Deployments:
    return github.Deployments(box, hub.url + hub.PATH, token, "c0ffee", "https://ci/1")


def environments(
    box: Outbox, lab: GitLab, headers: dict[str, str] | None = None, *, may_refuse: bool = False
) -> gitlab.Environments:
    headers = headers or {"PRIVATE-TOKEN": "secret"}
    return gitlab.Environments(box, lab.url + lab.PATH, headers, may_refuse)


def webhook(box: Outbox, url: str, *events: str) -> WebhookChannel:
    return WebhookChannel(box, url, {"X-Key": "abc"}, frozenset(events), None)


# -- GitHub ----------------------------------------------------------------------------------


def test_deployment_states_follow_the_environment(
    hub: GitHub, sending: Outbox, warnings: list[str]
) -> None:
    """The deployment has the URL while the environment is up, and then becomes inactive."""
    client = deployments(sending, hub)
    client.tell(event("up"))
    client.tell(event("destroyed"))
    flush(sending)
    assert hub.states() == [["in_progress", "success", "inactive"]]
    assert hub.deployments[0]["statuses"][1]["environment_url"] == URL
    assert hub.headers["accept"] == "application/vnd.github+json"
    assert hub.headers["x-github-api-version"] == "2022-11-28"
    assert warnings == []


def test_a_kept_environment_stays_deployed(hub: GitHub, sending: Outbox) -> None:
    """Another process that destroys it later finds the same deployment."""
    client = deployments(sending, hub)
    client.tell(event("up"))
    client.tell(event("kept"))
    flush(sending)
    assert hub.states() == [["in_progress", "success"]]
    later = Outbox("service", pytest.fail)
    deployments(later, hub).tell(event("destroyed"))
    flush(later)
    assert hub.states() == [["in_progress", "success", "inactive"]]


def test_destroying_an_unknown_environment_creates_no_deployment(
    hub: GitHub, sending: Outbox
) -> None:
    """It may have been launched before the publisher was enabled."""
    deployments(sending, hub).tell(event("destroyed"))
    flush(sending)
    assert hub.deployments == []


@pytest.mark.parametrize("status", [403, 429])
@pytest.mark.parametrize("how", ["retry-after", "reset", "date"])
def test_sending_waits_for_a_rate_limit(
    hub: GitHub, sending: Outbox, warnings: list[str], status: int, how: str
) -> None:
    """GitHub's secondary limit gives a duration, its primary limit a point in time."""
    now = datetime.now(UTC)
    headers = {
        "retry-after": {"Retry-After": "0"},
        "reset": {**RATE_LIMITED, "X-RateLimit-Reset": str(int(now.timestamp()) - 1)},
        "date": {"Retry-After": format_datetime(now - timedelta(seconds=1))},
    }[how]
    limited = (status, headers, {"message": "API rate limit exceeded"})
    hub.faults.extend([None, limited, limited])
    deployments(sending, hub).tell(event("up"))
    flush(sending)
    assert hub.states() == [["in_progress", "success"]]
    assert warnings == []


def test_a_long_rate_limit_is_a_warning(hub: GitHub, sending: Outbox, warnings: list[str]) -> None:
    """A wait of an hour is not worthwhile; the warning has GitHub's own message."""
    limited = (403, {"Retry-After": "3600"}, {"message": "API rate limit exceeded"})
    hub.faults.append(limited)
    started = time.monotonic()
    deployments(sending, hub).tell(event("up"))
    flush(sending)
    assert time.monotonic() - started < 5
    assert warnings == ["service: HTTP 403 Forbidden: API rate limit exceeded"]


def test_a_lost_response_creates_no_second_deployment(
    hub: GitHub, sending: Outbox, warnings: list[str]
) -> None:
    """The client looks for the deployment before the next attempt."""
    hub.faults.extend([None, Service.LOST])
    deployments(sending, hub).tell(event("up"))
    flush(sending)
    assert hub.states() == [["in_progress", "success"]]
    assert warnings == []


def test_a_status_is_retried_after_a_server_error(hub: GitHub, sending: Outbox) -> None:
    """Repeating a status is harmless."""
    hub.faults.extend([None, None, (502, {}, None), (503, {}, None)])
    deployments(sending, hub).tell(event("up"))
    settle(sending)
    assert hub.states() == [["in_progress", "success"]]


def test_a_wrong_token_causes_one_warning(
    hub: GitHub, sending: Outbox, warnings: list[str]
) -> None:
    """There is one warning for all environments, and it does not have the token."""
    client = deployments(sending, hub, token="hidden")
    for number in range(3):
        client.tell(event("up", id=f"staging-{number}"))
    flush(sending)
    assert warnings == ["service: HTTP 401 Unauthorized: Bad credentials"]


def test_the_token_takes_precedence_over_netrc(
    hub: GitHub, sending: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default, requests would send the password of ~/.netrc instead."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login anna password wrong\n")
    monkeypatch.setenv("NETRC", str(netrc))
    deployments(sending, hub).tell(event("up"))
    flush(sending)
    assert hub.states() == [["in_progress", "success"]]


def test_a_pull_request_uses_its_head_commit(tmp_path: Path) -> None:
    """GITHUB_SHA is a merge commit, which GitHub's pages do not show."""
    file = tmp_path / "event.json"
    file.write_text('{"pull_request": {"head": {"sha": "feed"}}}')
    assert github.revision({"GITHUB_SHA": "beef", "GITHUB_EVENT_PATH": str(file)}) == "feed"
    file.write_text('{"ref": "main"}')
    assert github.revision({"GITHUB_SHA": "beef", "GITHUB_EVENT_PATH": str(file)}) == "beef"
    assert github.revision({"GITHUB_SHA": "beef"}) == "beef"


# -- GitLab ----------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["PRIVATE-TOKEN", "JOB-TOKEN"])
def test_a_gitlab_environment_is_created_and_stopped(
    lab: GitLab, sending: Outbox, warnings: list[str], header: str
) -> None:
    """Its name is in the folder ``ephemeral/``, and it has the URL."""
    client = environments(sending, lab, {header: "secret"})
    client.tell(event("up"))
    client.tell(event("kept"))
    client.tell(event("died"))
    flush(sending)
    (made,) = lab.environments
    assert made["name"] == "ephemeral/staging-7f3k2q"
    assert made["external_url"] == URL
    assert made["state"] == "stopped"
    assert warnings == []


def test_a_lost_response_creates_no_second_gitlab_environment(
    lab: GitLab, sending: Outbox, warnings: list[str]
) -> None:
    """A second attempt would fail as the name is taken, so the client looks for it first."""
    lab.faults.extend([None, Service.LOST])
    client = environments(sending, lab)
    client.tell(event("up"))
    client.tell(event("destroyed"))
    flush(sending)
    assert [one["state"] for one in lab.environments] == ["stopped"]
    assert warnings == []


def test_a_refused_job_token_causes_no_warning(
    lab: GitLab, sending: Outbox, warnings: list[str]
) -> None:
    """Most projects do not give job tokens the permission, and the user did not configure it."""
    client = environments(sending, lab, {"JOB-TOKEN": "no"}, may_refuse=True)
    client.tell(event("up"))
    flush(sending)
    asked = len(lab.asked)
    client.tell(event("destroyed"))
    assert len(lab.asked) == asked
    assert warnings == []


def test_a_refused_configured_token_causes_a_warning(
    lab: GitLab, sending: Outbox, warnings: list[str]
) -> None:
    """The user configured this token, so it should work."""
    environments(sending, lab, {"PRIVATE-TOKEN": "no"}).tell(event("up"))
    flush(sending)
    assert warnings == ["service: HTTP 401 Unauthorized: 401 Unauthorized"]


# -- webhooks --------------------------------------------------------------------------------


def test_a_webhook_receives_only_its_events(hook: Service, sending: Outbox) -> None:
    """Each message has the headers and a unique id to detect repetitions."""
    client = webhook(sending, hook.url, "up", "died")
    for outcome in ("up", "kept", "destroyed", "died"):
        client.tell(event(outcome))
    flush(sending)
    assert [body["event"] for _, _, body in hook.asked] == ["up", "died"]
    assert hook.headers["x-key"] == "abc"
    assert len({body["id"] for _, _, body in hook.asked}) == 2


def test_a_webhook_is_retried_until_accepted(
    hook: Service, sending: Outbox, warnings: list[str]
) -> None:
    """Every attempt sends the same message with the same id."""
    hook.faults.extend([(500, {}, None), Service.LOST, (429, {"Retry-After": "0"}, None)])
    webhook(sending, hook.url).tell(event("up"))
    settle(sending)
    assert len(hook.asked) == 4
    assert len({body["id"] for _, _, body in hook.asked}) == 1
    assert warnings == []


def test_a_refusing_webhook_is_not_retried(
    hook: Service, sending: Outbox, warnings: list[str]
) -> None:
    """A client error such as 404 is final."""
    hook.faults.append((404, {}, {"error": "no_such_channel"}))
    webhook(sending, hook.url).tell(event("up"))
    flush(sending)
    assert len(hook.asked) == 1
    assert warnings == ["service: HTTP 404 Not Found: no_such_channel"]


def test_webhook_redirects_are_not_followed(
    hook: Service, sending: Outbox, warnings: list[str]
) -> None:
    """Only the configured URL may receive the headers, which can have secrets."""
    hook.faults.append((302, {"Location": hook.url + "/other"}, None))
    webhook(sending, hook.url).tell(event("up"))
    flush(sending)
    assert [path for _, path, _ in hook.asked] == ["/"]
    assert warnings == ["service: HTTP 302 Found"]


def test_a_silent_webhook_does_not_delay_the_run(warnings: list[str]) -> None:
    """Adding messages does not block, and closing waits only until its deadline."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, but never responds
        box = Outbox("service", warnings.append)
        client = webhook(box, f"http://127.0.0.1:{silent.getsockname()[1]}/")
        started = time.monotonic()
        for _ in range(20):
            client.tell(event("up"))
        told = time.monotonic()
        flush(box, 0.3)
        ended = time.monotonic()
    assert told - started < 1
    assert ended - told < 2
    (said,) = warnings  # the timeout of a request, or of the close
    assert said in {"service: gave up on 20 messages at the end of the run", "service: ReadTimeout"}


def test_retries_are_short_at_the_end_of_the_run(
    hook: Service, sending: Outbox, warnings: list[str]
) -> None:
    """The first message gets a second attempt, and each later message only one."""
    hook.faults.extend([(500, {}, None)] * 10)
    client = webhook(sending, hook.url)
    sending._closing.set()
    for _ in range(3):
        client.tell(event("up"))
    flush(sending)
    assert len(hook.asked) == 4
    assert warnings == ["service: HTTP 500 Internal Server Error"]


def test_an_unreachable_webhook_is_one_warning(sending: Outbox, warnings: list[str]) -> None:
    """It has only the kind of error, because the URL may contain a token."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    client = webhook(sending, f"http://127.0.0.1:{port}/token")
    client.tell(event("up"))
    client.tell(event("destroyed"))
    flush(sending, 0.5)
    assert len(warnings) == 1
    assert "token" not in warnings[0]
