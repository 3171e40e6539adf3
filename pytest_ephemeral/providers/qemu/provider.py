"""The qemu provider: virtual machines on this machine, each under a guard."""

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

#: Runs a command with the variables and in the working folder of the guest's processes.
_INSIDE: Final = (
    f"set -a; if [ -r {user_data.VARIABLES} ]; then . {user_data.VARIABLES}; fi; set +a; "
    'cd "${STATE:-/}" 2>/dev/null || cd /; exec "$@"'
)

#: Seconds that a booted guest may take to answer.
_ANSWER: Final = 20.0

#: The state of a listening socket in /proc/net/tcp.
_LISTEN: Final = "0A"


class QemuProvider(GuardedEnvironments, MachineBaselines, QemuBaker):
    """Runs environments as virtual machines; see ``Provider``."""

    name: ClassVar[str] = "qemu"
    template_type: ClassVar[type[Template]] = QemuTemplate
    recipe_type: ClassVar[type[Recipe] | None] = QemuRecipe
    forwards_ports: ClassVar[bool] = True
    folder_type: ClassVar[type[Folder]] = MachineFolder

    def doctor(self) -> Sequence[Check]:
        """Check that QEMU is installed, and which accelerator works."""
        return checks()

    def preflight(
        self,
        template: Template,
        recipes: Sequence[Recipe],
        root: Path,
        lifetime: float | None,  # noqa: ARG002
    ) -> None:
        """Check that QEMU is installed, and that this machine has enough memory."""
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
        """Start QEMU under a guard; wait until it is resumed from memory, but not for a boot."""
        try:
            return launch(order)
        except LaunchError:
            raise
        except (OSError, ValueError, EphemeralError) as error:
            raise LaunchError(f"{order.environment.id} could not be started: {error}") from error

    def status(self, environment: Environment) -> Status:
        """Whether QEMU runs, by its guard, and the application, by the console."""
        place = MachineFolder.of_environment(environment)
        try:
            status = machines.exit_status(place)
        except EnvironmentGoneError as error:
            return Status("gone", str(error))
        except EphemeralError as error:  # a guard that does not answer has failed
            return Status("exited", str(error))
        console = _console_since_start(place)
        if OWN in environment.handle and (last := user_data.last_words(console)):
            return Status("exited", last)
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
        """The output of its processes; if the image starts them itself, the console."""
        return _log(environment, since, until).text(None, None, tail)

    def log_mark(self, environment: Environment) -> str:
        """The offset of the end of the console's last complete line."""
        place = _find_folder(environment)
        end = logs.end(place.logs, CONSOLE)
        tail = logs.read(place.logs, CONSOLE, max(0, end - 4096), end)
        return str(end - len(tail.rpartition(b"\n")[2]))

    def log_files(self, environment: Environment) -> Mapping[str, str]:
        """The output of each process, the console, and the guest's journal if it answers."""
        place = _find_folder(environment)
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
        """Run a command by the guest agent, with the variables and folder of the processes."""
        place = _find_folder(environment)
        wait = _ANSWER if timeout is None else max(timeout, _ANSWER)
        with qmp.open_agent(environment.id, place.state, timeout=wait) as agent:
            inside = ["/bin/sh", "-c", _INSIDE, "sh", *argv]
            done = machines.run_in(agent, inside, timeout=timeout)
        if done is None:
            raise subprocess.TimeoutExpired(list(argv), timeout or 0)
        return subprocess.CompletedProcess(list(argv), *done)

    def hint(self, environment: Environment) -> str:
        """Where the guest's processes listen, if not on the template's ports."""
        try:
            tables = ["cat", "/proc/net/tcp", "/proc/net/tcp6"]
            output = self.run(environment, tables, timeout=_ANSWER).stdout
        except (EphemeralError, subprocess.TimeoutExpired) as error:
            return str(error)
        found = _list_listening_ports(output)
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


def _list_listening_ports(tables: str) -> set[int]:
    """The ports with listening sockets, except on loopback, from /proc/net/tcp and tcp6."""
    found = set()
    for line in tables.splitlines():
        fields = line.split()
        if len(fields) > 3 and fields[3] == _LISTEN:
            host, _, port = fields[1].rpartition(":")
            if not host.endswith("0100007F"):  # the guest's loopback can't be reached from outside
                found.add(int(port, 16))
    return found


def _find_folder(environment: Environment) -> MachineFolder:
    """The folder of a machine, after the guard has written all output so far.

    Raises:
        EnvironmentGoneError: The machine is gone.
    """
    place = MachineFolder.of_environment(environment)
    if not place.logs.is_dir():
        raise EnvironmentGoneError(
            f"the machine of {environment.id} is gone, and its logs with it: it was destroyed, or "
            "has expired. To save logs: pytest --ephemeral-logs DIR"
        )
    client.status(place.control)  # the guard writes all output before it answers
    return place


def _log(environment: Environment, since: str | None, until: str | None) -> ConsoleLog:
    place = _find_folder(environment)
    end = None if until is None else int(until)
    data = logs.read(place.logs, CONSOLE, int(since or 0), end)
    text = data.decode(errors="replace").replace("\r", "")
    return ConsoleLog([text], own=OWN in environment.handle, name=CONSOLE)


def _console_since_start(place: MachineFolder) -> str:
    """The console's output since the last start of QEMU."""
    try:
        start = int((place.state / machines.SINCE).read_text())
    except (OSError, ValueError):
        start = 0
    data = logs.read(place.logs, CONSOLE, start)
    return data.decode(errors="replace").replace("\r", "")


def _physical_memory() -> int:
    """The size of this machine's memory in bytes; 0 if it is not known."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return 0
