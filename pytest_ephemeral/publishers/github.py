"""GitHub Actions: a notice, the step's summary, outputs and variables, and the Deployments API.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions
https://docs.github.com/rest/deployments
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pytest_ephemeral.publishers.channels import (
    Channel,
    HandoverChannel,
    Host,
    LimitedChannel,
    PrintChannel,
    append,
)
from pytest_ephemeral.publishers.events import EnvironmentEvent
from pytest_ephemeral.publishers.text import markdown_line
from pytest_ephemeral.publishers.web import session

if TYPE_CHECKING:
    from requests import Session

    from pytest_ephemeral.publishers.outbox import Attempts, Outbox

#: Bytes of one step's summary; GitHub does not show a larger one.
SUMMARY_LIMIT: Final = 1 << 20

#: The most characters of a notice, and of a deployment's description.
NOTICE_LIMIT: Final = 4096
DESCRIPTION_LIMIT: Final = 140


def notice(event: EnvironmentEvent) -> str:
    """The workflow command that shows a notice; empty unless the environment has come up."""
    if event.outcome != "up":
        return ""
    title = _escape(f"Environment {event.environment.id}", "%\r\n:,")
    text = _escape(event.sentence()[:NOTICE_LIMIT], "%\r\n")
    return f"::notice title={title}::{text}"


def assignments(values: Mapping[str, str], delimiter: str) -> str:
    """Lines for ``$GITHUB_OUTPUT`` and ``$GITHUB_ENV``.

    Args:
        values: The values, by name.
        delimiter: The delimiter of all values: a random text, so that no value contains it.

    Raises:
        ValueError: A value contains the delimiter.
    """
    for name, value in values.items():
        if delimiter in value:
            raise ValueError(f"{name} holds the delimiter that was to end it")
    return "".join(f"{name}<<{delimiter}\n{value}\n{delimiter}\n" for name, value in values.items())


def summary(event: EnvironmentEvent) -> str:
    """A line of the step's summary; empty while the environment is up.

    GitHub shows a summary when the step has ended.
    """
    return "" if event.outcome == "up" else f"- {markdown_line(event)}\n"


def deployment(event: EnvironmentEvent, revision: str) -> dict[str, Any]:
    """The body of the request that creates a deployment, with ``transient_environment``."""
    return {
        "ref": revision,
        "task": task(event),
        "auto_merge": False,
        "required_contexts": [],
        "payload": {"environment": event.environment.id, "image": event.image},
        "environment": event.environment.template,
        "description": f"{event.environment.id}, by pytest-ephemeral"[:DESCRIPTION_LIMIT],
        "transient_environment": True,
        "production_environment": False,
    }


def statuses(event: EnvironmentEvent, log_url: str) -> list[dict[str, Any]]:
    """The bodies of the requests that create a deployment's statuses for an event, in order."""
    common = {"log_url": log_url, "auto_inactive": False}
    if event.outcome == "up":
        success = {"state": "success", "environment_url": event.url, **common}
        until = f"up until {event.until}" if event.until else "up"
        return [{"state": "in_progress", **common}, {**success, "description": until}]
    return [] if event.is_up else [{"state": "inactive", **common}]


def task(event: EnvironmentEvent) -> str:
    """The deployment's ``task``: other processes find the deployment by it."""
    return f"ephemeral:{event.environment.id}"


def channels(host: Host) -> Iterator[tuple[str, Channel]]:
    """GitHub's channels: those for which the step has files or a token."""
    environ = host.environ
    yield "notice", PrintChannel(host.console, notice)
    if file := environ.get("GITHUB_STEP_SUMMARY"):
        yield "summary", _StepSummary(Path(file))
    for name in ("GITHUB_OUTPUT", "GITHUB_ENV"):
        if file := environ.get(name):
            yield name, HandoverChannel(_AppendAssignments(Path(file)))
    token = environ.get("GITHUB_TOKEN") or environ.get("GH_TOKEN")
    repository = environ.get("GITHUB_REPOSITORY")
    if token and repository:
        api = environ.get("GITHUB_API_URL", "https://api.github.com")
        client = Deployments(
            outbox=host.outbox("GitHub Deployments"),
            url=f"{api}/repos/{repository}/deployments",
            token=token,
            revision=revision(environ),
            log_url=host.build.url if host.build else "",
        )
        yield "deployments", LimitedChannel(client)


def revision(environ: Mapping[str, str]) -> str:
    """The commit to record in a deployment.

    For a pull request, this is its head: ``GITHUB_SHA`` is a merge commit made by GitHub, and
    GitHub does not show a deployment of that commit at the pull request.
    """
    try:
        event = json.loads(Path(environ["GITHUB_EVENT_PATH"]).read_bytes())
        return str(event["pull_request"]["head"]["sha"])
    except (KeyError, TypeError, OSError, ValueError):
        return environ.get("GITHUB_SHA", "")


class Deployments(msgspec.Struct):
    """Records environments as GitHub deployments.

    Attributes:
        outbox: The outbox for requests.
        url: The API's URL of the repository's deployments.
        token: The API token.
        revision: The commit's hash.
        log_url: The URL of the build.
    """

    outbox: Outbox
    url: str
    token: str
    revision: str
    log_url: str
    _ids: dict[str, int] = msgspec.field(default_factory=dict)

    def tell(self, event: EnvironmentEvent) -> None:
        """Send the statuses for an event, if it has any."""
        if bodies := statuses(event, self.log_url):
            self.outbox.put(lambda attempts: self._send(event, bodies, attempts))

    def _send(
        self, event: EnvironmentEvent, bodies: list[dict[str, Any]], attempts: Attempts
    ) -> None:
        with session(f"Bearer {self.token}", {"X-GitHub-Api-Version": "2022-11-28"}) as http:
            http.headers["Accept"] = "application/vnd.github+json"
            number = self._number(http, event, attempts)
            if number is None:
                return  # no deployment was created for it
            self._ids[task(event)] = number
            for body in bodies:
                attempts.request(http, "POST", f"{self.url}/{number}/statuses", json=body)

    def _number(self, http: Session, event: EnvironmentEvent, attempts: Attempts) -> int | None:
        def find() -> int | None:
            found = attempts.request(http, "GET", self.url, params={"task": task(event)}).json()
            return found[0]["id"] if found else None

        if number := self._ids.get(task(event)):
            return number
        if event.outcome == "up":
            return attempts.create(http, self.url, deployment(event, self.revision), find)
        return find()  # created by another process


class _StepSummary(msgspec.Struct, frozen=True):
    file: Path

    def tell(self, event: EnvironmentEvent) -> None:
        append(self.file, summary(event), limit=SUMMARY_LIMIT)


class _AppendAssignments(msgspec.Struct, frozen=True):
    file: Path

    def __call__(self, values: dict[str, str]) -> None:
        append(self.file, assignments(values, f"ghadelimiter_{uuid.uuid4()}"))


def _escape(text: str, letters: str) -> str:
    """Percent-encode the given letters; if ``%`` is one, it must be the first."""
    for letter in letters:
        text = text.replace(letter, f"%{ord(letter):02X}")
    return text
