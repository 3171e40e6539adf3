"""Machines: each has a folder, and a guard that ends QEMU in any case."""

from __future__ import annotations

import base64
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar, Final

import msgspec

from pytest_ephemeral import labels, machine
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.providers.ec2 import user_data
from pytest_ephemeral.providers.local import client, guard, logs, removal
from pytest_ephemeral.providers.local.folder import Folder
from pytest_ephemeral.providers.qemu import programs, qmp
from pytest_ephemeral.providers.qemu.content import Content
from pytest_ephemeral.providers.qemu.hardware import DISK, SEED, Hardware, device_argv

#: The name of the only process of a machine's guard; its log is the serial console.
CONSOLE: Final = "console"

#: In a machine's folder: the log's offset at the start of the current QEMU process.
SINCE: Final = "since"

#: Runs QEMU by the script ``start``. After its end, this writes its status to ``ended``, waits for
#: a line from the pipe ``again``, and runs QEMU by the script ``next``.
_LOOP: Final = (
    'while :; do sh ./start; echo "$?" >ended; read -r _ <again; mv next start; rm ended; done'
)

_UP: Final = "up"
#: The user data of a machine that only reports that it has booted.
UP_SCRIPT: Final = f"#!/bin/sh\necho 'pytest-ephemeral:end:0| {_UP}' >/dev/console\n"

#: Messages on the console of a machine that can't boot, each with an explanation.
_FAILURES: Final = {
    "Kernel panic - not syncing": "its kernel panicked",
    "No bootable device": "its disk has no boot loader: give kernel and initrd",
    "(initramfs)": "its initial RAM disk does not find the root disk",
    "You are in emergency mode": "systemd went into emergency mode",
    "grub rescue>": "its boot loader does not find its files",
}

#: The variables of this process that QEMU gets.
_ALLOWED: Final = ("PATH", "LANG", "TMPDIR")


class MachineFolder(Folder, frozen=True):
    """The folder of one machine."""

    home: ClassVar[str] = "machines"


class Start(msgspec.Struct, frozen=True):
    """How to start a machine.

    Attributes:
        hardware: The hardware.
        content: The files to boot from.
        forwards: By the guest's port: the address and port on this machine.
        memory: A file with frozen memory, which is mapped copy-on-write.
        fresh_disk: An overlay over the frozen disk; None to boot. With it, QEMU waits for the
            frozen state of the devices.
        artifact: A bake's artifact.
        disk: The size of the disk, if larger than the image's.
    """

    hardware: Hardware
    content: Content
    forwards: Mapping[int, tuple[str, int]] = {}
    memory: Path | None = None
    fresh_disk: Path | None = None
    artifact: Path | None = None
    disk: str | None = None

    def create_disk(self, place: MachineFolder) -> None:
        """Create the disk of a machine that boots, or that is resumed."""
        (place.state / DISK).unlink(missing_ok=True)
        if self.fresh_disk is not None:
            shutil.copyfile(self.fresh_disk, place.state / DISK)
            return
        programs.create_overlay(
            self.content.disk, place.state / DISK, self.disk, backing_format=self.content.format
        )

    def argv(self) -> list[str]:
        """QEMU's command line."""
        incoming = [] if self.fresh_disk is None else ["-incoming", "defer"]
        return [
            *self.hardware.launcher(self.memory),
            programs.find(programs.SYSTEM),
            *self.hardware.argv(self.memory),
            *device_argv(self.content, forwards=self.forwards, artifact=self.artifact),
            *incoming,
        ]


def write_seed(place: MachineFolder, script: str) -> None:
    """Write the seed for cloud-init (NoCloud): the machine's id, and its user data.

    Args:
        place: The machine's folder.
        script: The user data.
    """
    seed = place.state / SEED
    seed.mkdir(exist_ok=True)
    id = place.path.name
    # "local": cloud-init need not wait for a network.
    known = {"instance-id": id, "local-hostname": id[:63].rstrip("-"), "dsmode": "local"}
    (seed / "meta-data").write_text("".join(f"{name}: {it}\n" for name, it in known.items()))
    (seed / "user-data").write_text(script)


def write_start(place: MachineFolder, start: Start, name: str = "start") -> None:
    """Write the script that starts QEMU, now (``start``) or next (``next``)."""
    (place.state / name).write_text(f"exec {shlex.join(start.argv())}\n")


def start_machine(
    place: MachineFolder,
    start: Start,
    *,
    descriptors: Sequence[int],
    expires_at: datetime | None,
    secrets: Sequence[str] = (),
    settle: Sequence[str] = (),
) -> guard.Guard:
    """Start a machine whose seed is in its folder, without waiting for it.

    Args:
        place: The machine's folder; its disk is created in it.
        start: How to start it.
        descriptors: Locks and claims to hold while it lives.
        expires_at: The machine's expiry.
        secrets: Values to mask in its log.
        settle: A command to run if it has ended without its owner.
    """
    start.create_disk(place)
    write_start(place, start)
    os.mkfifo(place.state / "again", 0o600)
    return guard.start(
        guard.Spec(
            id=place.path.name,
            control=place.path,
            processes={CONSOLE: ["/bin/sh", "-c", _LOOP]},
            directory=place.state,
            variables={name: os.environ[name] for name in _ALLOWED if name in os.environ},
            logs=place.logs,
            mark=place.mark,
            remove=[place.path],
            secrets=secrets,
            expires_at=None if expires_at is None else expires_at.timestamp(),
            settle=settle,
            descriptors=descriptors,
        )
    )


def read_console(place: MachineFolder) -> str:
    """The output on a machine's serial console, without segments that were rotated away."""
    with suppress(EphemeralError):
        client.status(place.control)  # the guard writes all output before it answers
    return logs.read(place.logs, CONSOLE).decode(errors="replace").replace("\r", "")


def find_boot_failure(console: str) -> str:
    """Why a machine can't boot, for people, by its console; empty if there is no such message."""
    return next((why for sign, why in _FAILURES.items() if sign in console), "")


def last_lines(console: str, number: int = 15) -> str:
    """The last lines of a console, indented; if there are none, a hint."""
    lines = [line for line in console.splitlines() if line.strip()][-number:]
    return "\n".join(f"    {line}" for line in lines) or (
        "    (nothing: a kernel prints there only with console=ttyS0)"
    )


def exit_status(place: MachineFolder) -> int | None:
    """QEMU's exit status; None while it runs.

    Raises:
        EphemeralError: Its guard is gone.
    """
    client.status(place.control)
    try:
        return int((place.state / qmp.ENDED).read_text())
    except (FileNotFoundError, ValueError):  # ValueError: the file is being written
        return None


class Temporary(msgspec.Struct, frozen=True):
    """A machine that a bake, or the freezing of memory, needs for a while."""

    place: MachineFolder
    start: Start

    @property
    def id(self) -> str:
        """The machine's id."""
        return self.place.path.name

    def wait_until_up(self, patience: float) -> None:
        """Wait until cloud-init has run ``UP_SCRIPT``, its last step.

        Args:
            patience: Seconds to wait at most.

        Raises:
            MachineError: It has not; the message has the last lines of the console.
        """
        deadline = time.monotonic() + patience
        while user_data.last_words(console := read_console(self.place)) != _UP:
            why = find_boot_failure(console)
            if not why and exit_status(self.place) is not None:
                why = "QEMU has ended"
            if not why and time.monotonic() > deadline:
                why = f"not within {patience:g} s"
            if why:
                raise qmp.MachineError(
                    f"{self.id} did not boot: {why}. Its console ends with:\n{last_lines(console)}"
                )
            time.sleep(0.1)

    def wait_for_end(self, patience: float) -> bool:
        """Wait until QEMU has ended, at most so many seconds; return whether it has."""
        deadline = time.monotonic() + patience
        while exit_status(self.place) is None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


@contextmanager
def temporary(
    name: str,
    start: Start,
    script: str,
    *,
    key: str,
    lifetime: float,
    descriptors: Sequence[int] = (),
    secrets: Sequence[str] = (),
) -> Iterator[Temporary]:
    """Start a machine, with labels by which ``reap`` finds it, and destroy it after the block.

    Args:
        name: The start of its id.
        start: How to start it.
        script: The user data.
        key: The image's key.
        lifetime: Seconds until its expiry.
        descriptors: Further locks to hold.
        secrets: Values to mask in its log.
    """
    id = f"{name}-{os.urandom(4).hex()}"
    place = MachineFolder.of(id)
    owner = machine.this_owner(name)
    expires_at = datetime.now(UTC) + timedelta(seconds=lifetime)
    known = labels.for_environment(
        id=id, template=name, run=name, owner=str(owner), expires_at=expires_at, image=key
    )
    held = None
    lock = place.make(known)
    try:
        write_seed(place, script)
        held = start_machine(
            place, start, descriptors=[lock, *descriptors], expires_at=expires_at, secrets=secrets
        )
        yield Temporary(place, start)
    finally:
        with ExitStack() as closing:
            closing.callback(os.close, lock)
            removal.destroy(place, held, here=True)


def run_in(
    agent: qmp.MachineConnection, argv: Sequence[str], *, timeout: float | None
) -> tuple[int, str, str] | None:
    """Run a command by the guest agent.

    Args:
        agent: The connection to the agent.
        argv: The command, which is run in a session of its own.
        timeout: Seconds after which its session is killed; None for no limit.

    Returns:
        Its exit status, its output and its errors; None if it was killed.

    Raises:
        MachineError: The agent can't run it.
    """
    # Debian's agent needs the program's full path.
    pid = agent.call("guest-exec", path="/usr/bin/setsid", arg=list(argv), capture_output=True)[
        "pid"
    ]
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = 0.005
    while not (state := agent.call("guest-exec-status", pid=pid))["exited"]:
        if deadline is not None and time.monotonic() > deadline:
            kill = ["-c", f"kill -9 -{pid} {pid}"]
            agent.call("guest-exec", path="/bin/sh", arg=kill)
            return None
        time.sleep(pause)
        pause = min(pause * 1.5, 0.2)
    status = int(state.get("exitcode", -state.get("signal", 0)))
    output, errors = (
        base64.b64decode(state.get(name, "")).decode(errors="replace")
        for name in ("out-data", "err-data")
    )
    return status, output, errors
