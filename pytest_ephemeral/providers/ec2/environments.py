"""The instances of an environment: their state, their output, and commands on them.

The ec2 and cloudformation providers share this: a stack's instances carry the same tags.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import ClassVar, Final

from pytest_ephemeral import aws
from pytest_ephemeral.errors import EnvironmentGoneError, EphemeralError
from pytest_ephemeral.labels import EXPIRES, NEVER
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.ec2 import console, identity, ssm, user_data
from pytest_ephemeral.providers.ec2.errors import translate_errors
from pytest_ephemeral.providers.ec2.instance_watcher import (
    Instance,
    InstanceWatcher,
    state,
    watch_region,
)
from pytest_ephemeral.providers.ec2.tags import format_expiry, tags_of
from pytest_ephemeral.providers.protocol import Status

#: In a handle: the region of the environment's instances.
REGION: Final = "region"
#: In a handle: the names of the processes that the boot script starts and whose lines it numbers.
PARTS: Final = "parts"

#: The reason code of an instance that was terminated or stopped through the API.
_ON_PURPOSE: Final = frozenset({"Client.UserInitiatedShutdown"})
#: The status of an ended environment whose record is kept for its instance on standby.
ON_STANDBY: Final = Status("gone", "its instance is on standby for the next")
ENDED: Final = frozenset({"shutting-down", "terminated", "stopping", "stopped"})


class Instances:
    """The part of ``Provider`` that inspects instances, and runs commands on them.

    Attributes:
        unreachable: The hint when no command can be run to find out where a process listens.
    """

    unreachable: ClassVar[str] = (
        "check that its application listens on $HOST, and that ingress admits this machine"
    )

    def status(self, environment: Environment) -> Status:
        """The state of the instances at the watcher's last poll; makes no call of its own."""
        if environment.state == "standby":
            return ON_STANDBY
        with translate_errors(f"{environment.id} can't be inspected", EphemeralError):
            found = get_watcher(environment).instances(environment)
        return status_of(environment, found)

    def logs(
        self,
        environment: Environment,
        *,
        since: str | None = None,
        until: str | None = None,
        tail: int | None = None,
    ) -> str:
        """The processes' output on the consoles; EC2's copy may be some seconds old."""
        return self._log(environment).text(since, until, tail)

    def log_mark(self, environment: Environment) -> str:
        """The number of each process's last line, as JSON."""
        return self._log(environment).mark()

    def last_log_mark(self, environment: Environment) -> str:
        """See ``SupportsLastLogMark``: from the consoles as last read, without a call."""
        watcher = get_watcher(environment)
        found = watcher.recall(environment)
        return _to_log(environment, [watcher.consoles.recall(_id(one)) for one in found]).mark()

    def log_files(self, environment: Environment) -> Mapping[str, str]:
        """The whole output on the consoles, by process."""
        return self._log(environment, now=True).files()

    def _log(self, environment: Environment, *, now: bool = False) -> console.ConsoleLog:
        return read_console_log(environment, now=now)

    def run(
        self, environment: Environment, argv: Sequence[str], *, timeout: float | None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the environment's first instance, by AWS Systems Manager."""
        first = _id(find_living(environment)[0])

        def is_living() -> bool:
            return first in map(_id, find_living(environment))

        with translate_errors(f"{environment.id} could not run a command", EphemeralError):
            client = aws.client("ssm", environment.handle.get(REGION))
            return ssm.run(client, environment.id, first, argv, timeout=timeout, alive=is_living)

    def hint(self, environment: Environment) -> str:
        """Where the application listens, if a command can find out; if not, what to check."""
        try:
            first = find_living(environment)[0]
            argv = ["cat", "/proc/net/tcp"]
            done = self.run(environment, argv, timeout=5)
        except (EphemeralError, subprocess.TimeoutExpired):
            return self.unreachable
        ports = {endpoint.port for endpoint in environment.endpoints.values()}
        return _listens_elsewhere(done.stdout, str(first["PrivateIpAddress"]), ports)


def status_of(environment: Environment, found: Sequence[Instance]) -> Status:
    if not found:
        return Status("gone", "it has no instances")
    ended = [one for one in found if state(one) in ENDED]
    if not ended:
        return Status("running", ", ".join(f"{one['InstanceId']} {state(one)}" for one in found))
    detail = "; ".join(_exit_reason(environment, one) for one in ended)
    if len(ended) == len(found) and all(_reason(one)[0] in _ON_PURPOSE for one in ended):
        return Status("gone", detail)
    expires = tags_of(found[0]).get(EXPIRES, NEVER)
    expired = expires != NEVER and expires <= format_expiry(datetime.now(UTC))
    return Status("gone" if expired else "exited", detail)


#: By the id of an ended instance: the last message of its boot script.
_last_words: dict[str, str] = {}


def _exit_reason(environment: Environment, instance: Instance) -> str:
    """Why an instance has ended: its boot script's last message, and EC2's own reason."""
    id = str(instance["InstanceId"])
    code, message = _reason(instance)
    last_words = ""
    if code not in _ON_PURPOSE:
        if id not in _last_words:
            with contextlib.suppress(EphemeralError):
                text = get_watcher(environment).consoles.read(id, now=True)
                _last_words[id] = user_data.last_words(text)
        last_words = _last_words.get(id, "")
    return ", ".join(filter(None, [last_words, f"{id} is {state(instance)}", message or code]))


def _reason(instance: Instance) -> tuple[str, str]:
    found = instance.get("StateReason") or {}
    return str(found.get("Code", "")), str(found.get("Message", ""))


def find_living(environment: Environment) -> list[Instance]:
    """An environment's instances that have not ended.

    Raises:
        EnvironmentGoneError: There are none.
        EphemeralError: AWS can't be asked.
    """
    if environment.state == "standby":
        raise EnvironmentGoneError(f"{environment.id} has ended: {ON_STANDBY.detail}")
    with translate_errors(f"{environment.id} can't be inspected", EphemeralError):
        found = get_watcher(environment).instances(environment)
    found = [one for one in found if state(one) not in ENDED]
    if not found:
        raise EnvironmentGoneError(f"no instance of {environment.id} runs any more")
    return found


def read_console_log(environment: Environment, *, now: bool = False) -> console.ConsoleLog:
    """The output on the consoles of an environment's instances.

    Args:
        environment: The environment.
        now: Read the consoles again, even if they were read a moment ago.

    Raises:
        EnvironmentGoneError: The instances are gone.
        EphemeralError: AWS can't be asked.
    """
    with translate_errors(f"{environment.id} can't be inspected", EphemeralError):
        watcher = get_watcher(environment)
        found = watcher.instances(environment)
        if status_of(environment, found).state == "gone":
            raise EnvironmentGoneError(
                f"the logs of {environment.id} are gone with it: it was destroyed, or has expired. "
                "To save logs: pytest --ephemeral-logs DIR"
            )
        texts = [watcher.consoles.read(_id(one), now=now) for one in found]
    return _to_log(environment, texts)


def _id(instance: Instance) -> str:
    return str(instance["InstanceId"])


def _to_log(environment: Environment, texts: Sequence[str]) -> console.ConsoleLog:
    own = bool(environment.handle.get(PARTS)) or any(map(user_data.lines, texts))
    return console.ConsoleLog(texts, own=own)


def _listens_elsewhere(table: str, address: str, ports: set[int]) -> str:
    """Where something listens instead of the template's ports; empty if it listens on those.

    Args:
        table: The content of ``/proc/net/tcp``.
        address: The instance's private IPv4 address.
        ports: The template's ports.
    """
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
    return f"nothing listens on {address}, port {due} (of the template); open ports: {others}"


def get_watcher(environment: Environment) -> InstanceWatcher:
    """The watcher of an environment's region.

    Raises:
        ElsewhereError: The credentials belong to another account than the environment.
    """
    region = environment.handle.get(REGION)
    identity.check_account(environment, region)
    return watch_region(region)
