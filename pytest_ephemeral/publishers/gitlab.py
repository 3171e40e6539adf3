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

#: What GitLab takes of a dotenv report unless its administrator says otherwise.
VARIABLES_LIMIT: Final = 20
BYTES_LIMIT: Final = 5 * 1024

FILE: Final = "environments.env"


def dotenv(values: Mapping[str, str]) -> str:
    """A dotenv report: no quotes, no comments, no empty lines, and no more than GitLab takes."""
    lines = assignments(drop_empty(values)).splitlines(keepends=True)[:VARIABLES_LIMIT]
    while len("".join(lines).encode()) > BYTES_LIMIT:
        lines.pop()
    return "".join(lines)


def environment(event: EnvironmentEvent) -> dict[str, Any]:
    """The body that creates an environment; GitLab shows those of one folder together."""
    return {"name": name(event), "external_url": event.url, "tier": "testing"}


def name(event: EnvironmentEvent) -> str:
    """What GitLab calls the environment."""
    return f"ephemeral/{event.environment.id}"


def channels(host: Host) -> Iterator[tuple[str, Channel]]:
    """What there is of GitLab's here."""
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
    """Environments as GitLab's own: made when one is up, stopped when it is gone.

    Attributes:
        may_refuse: Whether a refusal by GitLab is expected. It lets a job's token do this from
            16.2 on, if the project allows it.
    """

    outbox: Outbox
    url: str
    headers: Mapping[str, str]
    may_refuse: bool
    _ids: dict[str, int] = msgspec.field(default_factory=dict)
    _refused: bool = False

    def tell(self, event: EnvironmentEvent) -> None:
        """Send it."""
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
