"""The qemu provider: virtual machines of this machine, each under a guard."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final

from pytest_ephemeral.errors import (
    ConfigurationError,
    EnvironmentGoneError,
    EphemeralError,
    LaunchError,
)
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.ec2 import user_data
from pytest_ephemeral.providers.ec2.console import ConsoleLog
from pytest_ephemeral.providers.local import client, logs
from pytest_ephemeral.providers.local.folder import Folder
from pytest_ephemeral.providers.local.guarded import GuardedEnvironments
from pytest_ephemeral.providers.protocol import Check, Order, Status
from pytest_ephemeral.providers.qemu import machines, programs, qmp
from pytest_ephemeral.providers.qemu.baking import QemuBaker
from pytest_ephemeral.providers.qemu.baselines import MachineBaselines
from pytest_ephemeral.providers.qemu.doctor import checks
from pytest_ephemeral.providers.qemu.hardware import GUEST
from pytest_ephemeral.providers.qemu.launch import OWN, PORTS, launch
from pytest_ephemeral.providers.qemu.machines import CONSOLE, MachineFolder
from pytest_ephemeral.providers.qemu.tables import QemuRecipe, QemuTemplate
from pytest_ephemeral.tables import Recipe, Template

#: Has the variables of the environment, and runs a command where its processes run.
_INSIDE: Final = (
    f"set -a; if [ -r {user_data.VARIABLES} ]; then . {user_data.VARIABLES}; fi; set +a; "
    'cd "${STATE:-/}" 2>/dev/null || cd /; exec "$@"'
)

#: Seconds a guest that is up may take to answer.
_ANSWER: Final = 20.0

#: The state of a socket that listens, as /proc/net/tcp has it.
_LISTEN: Final = "0A"


class QemuProvider(GuardedEnvironments, MachineBaselines, QemuBaker):
    """See ``Provider`` for what is promised."""

    name: ClassVar[str] = "qemu"
    template_type: ClassVar[type[Template]] = QemuTemplate
    recipe_type: ClassVar[type[Recipe] | None] = QemuRecipe
    forwards_ports: ClassVar[bool] = True
    folder_type: ClassVar[type[Folder]] = MachineFolder

    def doctor(self) -> Sequence[Check]:
        """Whether QEMU is here, and what runs its guests."""
        return checks()

    def preflight(
        self,
        template: Template,
        recipes: Sequence[Recipe],
        root: Path,
        lifetime: float | None,  # noqa: ARG002
    ) -> None:
        """Whether QEMU is here, and this machine has the memory that the template asks for."""
        if not isinstance(template, QemuTemplate):
            raise ConfigurationError(f"template {template.name!r} is not a QEMU template")
        for program in (programs.SYSTEM, programs.IMG):
            programs.find(program)
        wanted, there = programs.to_bytes(template.memory), _physical_memory()
        if there and wanted > there:
            raise ConfigurationError(
                f"templates.{template.name}.memory: {template.memory} is more than the "
                f"{there >> 20}M that this machine has"
            )
        for recipe in recipes:
            self.resolve(recipe, root)

    def launch(self, order: Order) -> Environment:
        """Start QEMU under a guard; what resumes from memory is waited for, a boot is not."""
        try:
            return launch(order)
        except LaunchError:
            raise
        except (OSError, ValueError, EphemeralError) as error:
            raise LaunchError(f"{order.environment.id} could not be started: {error}") from error

    def status(self, environment: Environment) -> Status:
        """Ask its guard whether QEMU runs, and its console whether the application does."""
        place = MachineFolder.of_environment(environment)
        try:
            status = machines.exit_status(place)
        except EnvironmentGoneError as error:
            return Status("gone", str(error))
        except EphemeralError as error:  # a guard that doesn't answer guards no more
            return Status("exited", str(error))
        console = _console_since_start(place)
        if OWN in environment.handle and (said := user_data.last_words(console)):
            return Status("exited", said)
        if status is None:
            return Status("running")
        why = machines.find_boot_failure(console) or f"QEMU exited with status {status}"
        ends = machines.last_lines(console)
        return Status("exited", f"{why}. Its console ends with:\n{ends}")

    def logs(
        self,
        environment: Environment,
        *,
        since: str | None = None,
        until: str | None = None,
        tail: int | None = None,
    ) -> str:
        """What its processes have printed; of an image that starts them itself, the console."""
        return _log(environment, since, until).text(None, None, tail)

    def log_mark(self, environment: Environment) -> str:
        """Where the last whole line of the console ends."""
        place = _living_place(environment)
        end = logs.end(place.logs, CONSOLE)
        tail = logs.read(place.logs, CONSOLE, max(0, end - 4096), end)
        return str(end - len(tail.rpartition(b"\n")[2]))

    def log_files(self, environment: Environment) -> Mapping[str, str]:
        """By process, with the whole console, and the guest's journal while it answers."""
        place = _living_place(environment)
        found = dict(_log(environment, None, None).files())
        found[CONSOLE] = machines.read_console(place)
        if self.status(environment).state != "running":
            return found
        try:
            argv = ["journalctl", "--no-pager", "--quiet", "--boot"]
            journal = self.run(environment, argv, timeout=_ANSWER)
        except (EphemeralError, subprocess.TimeoutExpired):
            return found
        return {**found, "journal": journal.stdout} if journal.stdout else found

    def run(
        self, environment: Environment, argv: Sequence[str], *, timeout: float | None
    ) -> subprocess.CompletedProcess[str]:
        """The guest agent runs it, with the variables and in the folder of its processes."""
        place = _living_place(environment)
        wait = _ANSWER if timeout is None else max(timeout, _ANSWER)
        with qmp.open_agent(environment.id, place.state, timeout=wait) as agent:
            inside = ["/bin/sh", "-c", _INSIDE, "sh", *argv]
            done = machines.run_in(agent, inside, timeout=timeout)
        if done is None:
            raise subprocess.TimeoutExpired(list(argv), timeout or 0)
        return subprocess.CompletedProcess(list(argv), *done)

    def hint(self, environment: Environment) -> str:
        """Compare where the guest's processes listen with what the template says."""
        try:
            tables = ["cat", "/proc/net/tcp", "/proc/net/tcp6"]
            told = self.run(environment, tables, timeout=_ANSWER).stdout
        except (EphemeralError, subprocess.TimeoutExpired) as error:
            return str(error)
        found = _listening(told)
        due = sorted(json.loads(environment.handle.get(PORTS, "[]")))
        missing = [port for port in due if port not in found]
        if not missing:
            return ""
        if strays := sorted(found - set(due) - {22}):
            return (
                f"in the guest something listens on port {strays[0]}; the template says "
                f"{GUEST}:{missing[0]}: let its command listen on $HOST and $PORT"
            )
        return f"in the guest nothing listens on port {missing[0]}"


def _listening(tables: str) -> set[int]:
    """The ports on which others are let in, in the text of /proc/net/tcp and tcp6."""
    found = set()
    for line in tables.splitlines():
        fields = line.split()
        if len(fields) > 3 and fields[3] == _LISTEN:
            host, _, port = fields[1].rpartition(":")
            if not host.endswith("0100007F"):  # the guest's own loopback leads nowhere
                found.add(int(port, 16))
    return found


def _living_place(environment: Environment) -> MachineFolder:
    """The folder of a machine, with all in its log that has been printed until now.

    Raises:
        EnvironmentGoneError: It is gone.
    """
    place = MachineFolder.of_environment(environment)
    if not place.logs.is_dir():
        raise EnvironmentGoneError(
            f"the machine of {environment.id} is gone, and its logs with it: it was destroyed, or "
            "has expired. Have them kept with: pytest --ephemeral-logs DIR"
        )
    client.status(place.control)  # the guard reads what was printed before it answers
    return place


def _log(environment: Environment, since: str | None, until: str | None) -> ConsoleLog:
    place = _living_place(environment)
    end = None if until is None else int(until)
    data = logs.read(place.logs, CONSOLE, int(since or 0), end)
    text = data.decode(errors="replace").replace("\r", "")
    return ConsoleLog([text], own=OWN in environment.handle, name=CONSOLE)


def _console_since_start(place: MachineFolder) -> str:
    """What QEMU has printed since it was started last."""
    try:
        start = int((place.state / machines.SINCE).read_text())
    except (OSError, ValueError):
        start = 0
    data = logs.read(place.logs, CONSOLE, start)
    return data.decode(errors="replace").replace("\r", "")


def _physical_memory() -> int:
    """Bytes of this machine's memory; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return 0
