"""The instances of an environment as everyone sees them: how they are, what they print, what runs.

An EC2 environment's are its own; a stack's carry its tags, and so are the same to look at.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from pytest_ephemeral import aws
from pytest_ephemeral.errors import DestroyError, EnvironmentGoneError, EphemeralError
from pytest_ephemeral.labels import EXPIRES, NEVER
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.ec2 import commands, console, guest, identity, refusals
from pytest_ephemeral.providers.ec2.fleet import Fleet, Instance, fleet, state
from pytest_ephemeral.providers.ec2.tagging import expiry, tags_of
from pytest_ephemeral.providers.protocol import Status

#: In a handle.
REGION: Final = "region"
#: In a handle: the processes that the boot script starts, whose lines it marks.
PARTS: Final = "parts"

#: Why an instance ended, when someone has ended it through the API.
_ON_PURPOSE: Final = frozenset({"Client.UserInitiatedShutdown"})
ENDED: Final = frozenset({"shutting-down", "terminated", "stopping", "stopped"})


class Instances:
    """The part of ``Provider`` that only looks at instances, or runs something on them."""

    def account(self) -> str:
        """The number of the account that boto3's credentials are of."""
        return aws.identity()["Account"]

    def status(self, environment: Environment) -> Status:
        """What the last look at all instances saw; costs no call of its own."""
        with explained(environment, "can't be looked at", EphemeralError):
            found = fleet_of(environment).instances(environment)
        return status_of(environment, found)

    def logs(
        self,
        environment: Environment,
        *,
        since: str | None = None,
        until: str | None = None,
        tail: int | None = None,
    ) -> str:
        """What its processes have put on the consoles, as new as EC2 has it."""
        return self._log(environment).text(since, until, tail)

    def log_mark(self, environment: Environment) -> str:
        """The number of each process's last line; empty where that can't be read now."""
        try:
            return self._log(environment).mark()
        except EnvironmentGoneError:
            raise
        except EphemeralError:
            return ""

    def log_files(self, environment: Environment) -> Mapping[str, str]:
        """What is on the consoles, by process."""
        return self._log(environment).files()

    def _log(self, environment: Environment) -> console.Log:
        return console_log(environment)

    def run(
        self, environment: Environment, argv: Sequence[str], *, timeout: float | None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on its first instance, by Systems Manager."""
        first = living(environment)[0]["InstanceId"]
        with explained(environment, "could not run a command", EphemeralError):
            return commands.run(
                environment.handle.get(REGION), environment.id, first, argv, timeout=timeout
            )

    def hint(self, environment: Environment) -> str:
        """Where it listens, where that can be seen; else what lets nobody in."""
        try:
            first = living(environment)[0]
            argv = ["cat", "/proc/net/tcp"]
            done = self.run(environment, argv, timeout=5)
        except (EphemeralError, subprocess.TimeoutExpired):
            return (
                "see that its application listens on $HOST, and that ingress lets this machine in"
            )
        ports = {endpoint.port for endpoint in environment.endpoints.values()}
        return _listens_elsewhere(done.stdout, str(first["PrivateIpAddress"]), ports)


def status_of(environment: Environment, found: Sequence[Instance]) -> Status:
    if not found:
        return Status("gone", "no instance of it is there")
    ended = [one for one in found if state(one) in ENDED]
    if not ended:
        return Status("running", ", ".join(f"{one['InstanceId']} {state(one)}" for one in found))
    detail = "; ".join(_obituary(environment, one) for one in ended)
    if len(ended) == len(found) and all(_reason(one)[0] in _ON_PURPOSE for one in ended):
        return Status("gone", detail)
    expires = tags_of(found[0]).get(EXPIRES, NEVER)
    expired = expires != NEVER and expires <= expiry(datetime.now(UTC))
    return Status("gone" if expired else "exited", detail)


#: What was found on the consoles of instances that have ended; they say no more.
_obituaries: dict[str, str] = {}


def _obituary(environment: Environment, instance: Instance) -> str:
    """Why an instance has ended: what its boot script said last, and EC2's own reason."""
    id = str(instance["InstanceId"])
    code, message = _reason(instance)
    said = ""
    if code not in _ON_PURPOSE:
        if id not in _obituaries:
            with contextlib.suppress(EphemeralError):
                text = console.output(fleet_of(environment).client, id)
                _obituaries[id] = guest.last_words(text)
        said = _obituaries.get(id, "")
    return ", ".join(filter(None, [said, f"{id} is {state(instance)}", message or code]))


def _reason(instance: Instance) -> tuple[str, str]:
    found = instance.get("StateReason") or {}
    return str(found.get("Code", "")), str(found.get("Message", ""))


def living(environment: Environment) -> list[Instance]:
    """Its instances that have not ended.

    Raises:
        EnvironmentGoneError: There are none.
    """
    with explained(environment, "can't be looked at", EphemeralError):
        found = fleet_of(environment).instances(environment)
    found = [one for one in found if state(one) not in ENDED]
    if not found:
        raise EnvironmentGoneError(f"no instance of {environment.id} runs any more")
    return found


def console_log(environment: Environment) -> console.Log:
    """What is on the consoles of its instances.

    Raises:
        EnvironmentGoneError: They are gone.
    """
    with explained(environment, "can't be looked at", EphemeralError):
        squad = fleet_of(environment)
        found = squad.instances(environment)
        if status_of(environment, found).state == "gone":
            raise EnvironmentGoneError(
                f"the logs of {environment.id} are gone with it: it was destroyed, or has expired. "
                "Have them kept with: pytest --ephemeral-logs DIR"
            )
        texts = [console.output(squad.client, one["InstanceId"]) for one in found]
    own = bool(environment.handle.get(PARTS)) or any(map(guest.lines, texts))
    return console.Log(texts, own=own)


def _listens_elsewhere(table: str, address: str, ports: set[int]) -> str:
    """Compare ``/proc/net/tcp`` with what is due."""
    own = bytes(map(int, address.split("."))).hex().upper()
    own = "".join(reversed(re.findall("..", own)))
    rows = [row.split() for row in table.splitlines()[1:]]
    local = [row[1].split(":") for row in rows if len(row) > 3 and row[3] == "0A"]
    there = {int(port, 16) for host, port in local if host in {own, "00000000"}}
    if ports <= there:
        return ""
    due = ", ".join(map(str, sorted(ports - there)))
    only_inside = {int(port, 16) for host, port in local if host.endswith("7F")} - there
    if ports & only_inside:
        return f"it listens on 127.0.0.1:{min(ports & only_inside)}: let it listen on $HOST"
    others = ", ".join(map(str, sorted(there))) or "nothing"
    return f"nothing listens on {address} on port {due}, which the template says; {others} is open"


def fleet_of(environment: Environment) -> Fleet:
    """The fleet of an environment's region, in its account.

    Raises:
        ElsewhereError: The credentials are of another account.
    """
    region = environment.handle.get(REGION)
    identity.check_account(environment, region)
    return fleet(region)


@contextmanager
def asked(what: str) -> Iterator[None]:
    """Turn what AWS refuses, or has too much to do for, into our error."""
    from botocore.exceptions import ClientError

    try:
        with aws.explained():
            yield
    except ClientError as error:
        raise DestroyError(f"{what}: {refusals.told(error)}") from error


@contextmanager
def explained(
    environment: Environment, what: str, error_type: Callable[[str], EphemeralError]
) -> Iterator[None]:
    """Turn what AWS refuses into our error."""
    from botocore.exceptions import ClientError

    try:
        with aws.explained():
            yield
    except ClientError as error:
        raise error_type(f"{environment.id} {what}: {refusals.told(error)}") from error
