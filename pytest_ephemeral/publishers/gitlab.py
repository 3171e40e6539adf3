"""GitLab CI: a dotenv report, and the Environments API.

https://docs.gitlab.com/ci/yaml/artifacts_reports/#artifactsreportsdotenv
https://docs.gitlab.com/api/environments/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgspec

from pytest_ephemeral.publishers.channels import (
    Channel,
    HandoverChannel,
    Host,
    LimitedChannel,
    drop_empty,
    write,
)
from pytest_ephemeral.publishers.events import EnvironmentEvent
from pytest_ephemeral.publishers.outbox import DeliveryError
from pytest_ephemeral.publishers.text import assignments
from pytest_ephemeral.publishers.web import session

if TYPE_CHECKING:
    from pytest_ephemeral.publishers.outbox import Attempts, Outbox

#: The default limits of GitLab for a dotenv report.
VARIABLES_LIMIT: Final = 20
BYTES_LIMIT: Final = 5 * 1024

FILE: Final = "environments.env"


def dotenv(values: Mapping[str, str]) -> str:
    """A dotenv report within GitLab's limits: no quotes, no comments, no empty lines."""
    lines = assignments(drop_empty(values)).splitlines(keepends=True)[:VARIABLES_LIMIT]
    while len("".join(lines).encode()) > BYTES_LIMIT:
        lines.pop()
    return "".join(lines)


def environment(event: EnvironmentEvent) -> dict[str, Any]:
    """The body of the request that creates an environment."""
    return {"name": name(event), "external_url": event.url, "tier": "testing"}


def name(event: EnvironmentEvent) -> str:
    """The environment's name in GitLab, which groups names by the part before ``/``."""
    return f"ephemeral/{event.environment.id}"


def channels(host: Host) -> Iterator[tuple[str, Channel]]:
    """GitLab's channels: the dotenv report, and the API if there is a token."""
    environ = host.environ
    file = host.folder / FILE
    yield "dotenv", HandoverChannel(lambda values: write(file, dotenv(values)))
    api, project = environ.get("CI_API_V4_URL"), environ.get("CI_PROJECT_ID")
    token = environ.get("GITLAB_TOKEN")
    job_token = environ.get("CI_JOB_TOKEN")
    if api and project and (token or job_token):
        client = Environments(
            outbox=host.outbox("GitLab Environments"),
            url=f"{api}/projects/{quote(project, safe='')}/environments",
            headers={"PRIVATE-TOKEN": token} if token else {"JOB-TOKEN": job_token or ""},
            may_refuse=not token,
        )
        yield "environments", LimitedChannel(client)


class Environments(msgspec.Struct):
    """Records environments in GitLab: created when one is up, stopped when it is gone.

    Attributes:
        outbox: The outbox for requests.
        url: The API's URL of the project's environments.
        headers: The headers with the token.
        may_refuse: Whether a refusal is no error. A job token has the permission since
            GitLab 16.2, if the project allows it.
    """

    outbox: Outbox
    url: str
    headers: Mapping[str, str]
    may_refuse: bool
    _ids: dict[str, int] = msgspec.field(default_factory=dict)
    _refused: bool = False

    def tell(self, event: EnvironmentEvent) -> None:
        """Send the request for an event, unless an earlier one was refused."""
        if event.outcome != "kept" and not self._refused:
            self.outbox.put(lambda attempts: self._send(event, attempts))

    def _send(self, event: EnvironmentEvent, attempts: Attempts) -> None:
        try:
            self._try(event, attempts)
        except DeliveryError as error:
            self._refused = str(error).startswith(("HTTP 401", "HTTP 403", "HTTP 404"))
            if not (self._refused and self.may_refuse):
                raise

    def _try(self, event: EnvironmentEvent, attempts: Attempts) -> None:
        with session("", self.headers) as http:

            def find() -> int | None:
                found = attempts.request(http, "GET", self.url, params={"name": name(event)}).json()
                return found[0]["id"] if found else None

            number = self._ids.get(name(event))
            if event.outcome == "up":
                number = number or attempts.create(http, self.url, environment(event), find)
                self._ids[name(event)] = number
            elif number := number or find():
                attempts.request(http, "POST", f"{self.url}/{number}/stop", json={"force": True})
