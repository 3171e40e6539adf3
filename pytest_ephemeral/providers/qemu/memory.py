"""Freeze the memory of machines, with their disks, and resume machines from it.

The RAM is a file that each machine maps copy-on-write. QEMU's migration leaves it out
(``x-ignore-shared``), so only the state of the devices is loaded.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

import msgspec

from pytest_ephemeral import files, machine
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Model, decode, encode
from pytest_ephemeral.providers.qemu import programs, qmp, restore
from pytest_ephemeral.providers.qemu.hardware import DISK, MEMORY_NAME, describe_forward
from pytest_ephemeral.providers.qemu.qmp import MachineError

#: Seconds for saving or loading the state of the devices.
PATIENCE: Final = 120.0

#: Seconds after which memory that was not resumed is removed, when new memory is frozen.
UNUSED: Final = 7 * 86400.0

#: Bytes that are needed besides the RAM: for the devices' state and the disk's changes.
_MARGIN: Final = 256 << 20

_RAM, _STATE, _FRESH, _RECORD = "ram", "state", "fresh.qcow2", "memory.json"
_REFUSED: Final = "refused"


class MemoryRecord(Model, frozen=True, kw_only=True):
    """The record of frozen memory.

    Attributes:
        fits: The conditions for resuming it, by name; see ``fit.describe_fit``.
        image: The image's digest.
        files: The size and time of each file, and the digest of the devices' state. RAM and disk
            have no digests, as reading them takes as long as booting a machine.
    """

    fits: dict[str, str]
    image: str
    files: dict[str, str]


class Memory(msgspec.Struct, frozen=True):
    """Frozen memory in its folder."""

    folder: Path

    @classmethod
    def of(cls, fits: Mapping[str, str]) -> Self:
        """The folder for memory that fits some conditions, whether it exists or not."""
        key = files.digest_of([json.dumps(dict(fits), sort_keys=True).encode()])
        return cls(_home() / key.removeprefix("sha256:")[:24])

    @property
    def ram(self) -> Path | None:
        """The file with the guest's RAM; None if the RAM is in the devices' state."""
        return found if (found := self.folder / _RAM).exists() else None

    @property
    def fresh_disk(self) -> Path:
        """An overlay over the frozen disk, to be copied for each machine."""
        return self.folder / _FRESH

    def exists(self) -> bool:
        """Whether the folder exists, complete or not."""
        return self.folder.is_dir()

    def refuse(self, why: str) -> None:
        """Mark it so that no machine resumes it any more."""
        (self.folder / _REFUSED).write_text(why)

    def require_usable(self) -> None:
        """Check that it is unchanged, and not refused.

        Raises:
            MachineError: A file was changed; the message names it.
            EphemeralError: It was refused; the message has the reason.
        """
        with suppress(FileNotFoundError):
            raise EphemeralError((self.folder / _REFUSED).read_text())
        record = self.read()
        if record is None:
            raise MachineError(f"{self.folder} has no readable {_RECORD}")
        for name, known in record.files.items():
            if _describe(self.folder / name) != known:
                raise MachineError(f"{self.folder / name} has changed since it was frozen")

    def read(self) -> MemoryRecord | None:
        """The record; None if it can't be read."""
        try:
            return decode(files.read_regular(self.folder / _RECORD), MemoryRecord)
        except (OSError, msgspec.MsgspecError):
            return None

    def touch(self) -> None:
        """Record that it was used just now."""
        os.utime(self.folder)

    @classmethod
    def of_environment(cls, place: Path) -> Self:
        """The baseline of an environment, in the environment's folder."""
        return cls(place / "baseline")

    @contextmanager
    def make(self, ram: int) -> Iterator[Path]:
        """A temporary folder to freeze into; it replaces this folder at the end of the block.

        Args:
            ram: The size of the RAM in bytes.

        Raises:
            EphemeralError: There is not enough space.
        """
        self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_unused(self.folder.parent)
        free = shutil.disk_usage(self.folder.parent).free
        if free < ram + _MARGIN:
            raise EphemeralError(
                f"there is no space for {ram >> 20} MiB of memory in {self.folder.parent}: "
                f"{free >> 20} MiB are free. Remove files there, or set "
                f"{machine.STATE_VARIABLE} to a folder on another disk"
            )
        new = self.folder.with_name(f"{files.TEMPORARY}{os.getpid()}-{os.urandom(4).hex()}")
        new.mkdir(mode=0o700)
        try:
            yield new
            shutil.rmtree(self.folder, ignore_errors=True)
            new.rename(self.folder)
            # After the renaming, as the overlay has the path of the frozen disk.
            programs.create_overlay(self.folder / DISK, self.folder / _FRESH)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def seal(self, fits: Mapping[str, str], image: str) -> None:
        """Write the record, which marks it as complete."""
        names = (_RAM, _STATE, DISK, _FRESH)
        there = [self.folder / name for name in names if (self.folder / name).exists()]
        known = {file.name: _describe(file) for file in there}
        record = MemoryRecord(fits=dict(fits), image=image, files=known)
        files.replace(self.folder / _RECORD, [encode(record)])

    def remove(self) -> None:
        """Remove the folder; machines that were resumed from it keep their mapped files."""
        shutil.rmtree(self.folder, ignore_errors=True)


def every() -> Iterator[Memory]:
    """All frozen memory in this state directory."""
    with suppress(FileNotFoundError):
        for folder in sorted(_home().iterdir()):
            if not folder.name.startswith(".") and folder.is_dir():
                yield Memory(folder)


@contextmanager
def hold(memory: Memory) -> Iterator[None]:
    """Hold the lock for making some memory, on this machine."""
    memory.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with files.hold_lock(memory.folder.with_name(f".{memory.folder.name}.lock")):
        yield


def freeze(id: str, folder: Path, new: Path, variables: Mapping[str, str]) -> None:
    """Save a running machine's memory, devices and disk; the machine is paused afterwards.

    Args:
        id: The machine's id.
        folder: The folder with its sockets and its disk.
        new: The folder to write to.
        variables: Variables for the ``before-snapshot`` hooks.

    Raises:
        MachineError: It can't be frozen.
    """
    with restore.prepare(id, folder, variables), qmp.open_monitor(id, folder) as monitor:
        monitor.call("stop")
        ram = _find_ram(monitor.pid())
        _set_capabilities(monitor, ignore_shared=ram is not None)
        monitor.call("migrate-set-parameters", max_bandwidth=1 << 34)
        # "exec:", as "file:" needs QEMU 8.2.
        monitor.call("migrate", uri=f"exec:cat > {shlex.quote(str(new / _STATE))}")
        _wait_for_state(monitor)
        while monitor.call("query-status")["status"] == "finish-migrate":
            time.sleep(0.002)  # QEMU reports "completed" a moment before it can continue
        if ram is not None:
            _copy_sparse(ram, new / _RAM)
    _copy_sparse(folder / DISK, new / DISK)


def continue_machine(id: str, folder: Path) -> None:
    """Let a machine run again after it was frozen."""
    with qmp.open_monitor(id, folder) as monitor:
        monitor.call("cont")


def resume(
    id: str,
    folder: Path,
    memory: Memory,
    request: restore.WakeRequest,
    forwards: Mapping[int, tuple[str, int]],
) -> None:
    """Resume a machine that waits for its state, and then forward its ports.

    Raises:
        MachineError: It can't be resumed.
    """
    with qmp.open_monitor(id, folder) as monitor, qmp.open_helper(id, folder) as helper:
        _set_capabilities(monitor, ignore_shared=memory.ram is not None)
        # No announcements: each machine has a network of its own.
        monitor.call("migrate-set-parameters", announce_rounds=0)
        _load_state(monitor, memory.folder / _STATE)
        restore.send(helper, request)
        monitor.call("cont")
        restore.wait(helper)
        for port, (host, outside) in forwards.items():
            line = f"hostfwd_add net {describe_forward(host, outside, port)}"
            if refused := monitor.call("human-monitor-command", command_line=line).strip():
                raise MachineError(f"{id}: {line}: {refused}")


def _load_state(monitor: qmp.MachineConnection, state: Path) -> None:
    """Load the state of the devices through a socket, so that QEMU need not start a program."""
    here, there = socket.socketpair()
    with here, there:
        monitor.give(there, _STATE)
        there.close()
        monitor.call("migrate-incoming", uri=f"fd:{_STATE}")
        here.settimeout(PATIENCE)
        # If the connection breaks, QEMU reports why.
        with state.open("rb") as file, suppress(BrokenPipeError, ConnectionResetError):
            here.sendfile(file)
    _wait_for_state(monitor)


def _set_capabilities(monitor: qmp.MachineConnection, *, ignore_shared: bool) -> None:
    """Set whether the RAM is left out of the state; a resumed machine keeps this setting."""
    wanted = {"x-ignore-shared": ignore_shared, "events": True}
    capabilities = [{"capability": name, "state": on} for name, on in wanted.items()]
    monitor.call("migrate-set-capabilities", capabilities=capabilities)


def _wait_for_state(monitor: qmp.MachineConnection) -> None:
    """Wait until the state of the devices is saved or loaded."""
    deadline = time.monotonic() + PATIENCE
    while True:
        status = monitor.next_event("MIGRATION", deadline - time.monotonic())["status"]
        if status == "completed":
            return
        if status in {"failed", "cancelled"}:
            why = monitor.call("query-migrate").get("error-desc", status)
            raise MachineError(f"{monitor.id}: the state of its devices: {why}")


def _find_ram(pid: int) -> Path | None:
    """The RAM of a running machine: an unlinked file that is open in its process.

    None for a machine that was resumed: its changed pages are in no file.
    """
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if f"memfd:{MEMORY_NAME}" in str(descriptor.readlink()):
                return descriptor
    return None


def _copy_sparse(source: Path, target: Path) -> None:
    """Copy a sparse file, without its holes."""
    with source.open("rb") as reading, target.open("xb") as writing:
        size = os.fstat(reading.fileno()).st_size
        os.truncate(target, size)
        at = 0
        while at < size:
            try:
                start = os.lseek(reading.fileno(), at, os.SEEK_DATA)
            except OSError:  # there is only a hole left
                return
            at = os.lseek(reading.fileno(), start, os.SEEK_HOLE)
            os.lseek(writing.fileno(), start, os.SEEK_SET)
            while start < at:
                start += os.sendfile(writing.fileno(), reading.fileno(), start, at - start)


def _describe(file: Path) -> str:
    try:
        status = file.stat()
    except OSError as error:
        return str(error.strerror)
    known = f"{status.st_size} {status.st_mtime_ns}"
    return f"{known} {files.digest_of(files.chunks(file))}" if file.name == _STATE else known


def _remove_unused(home: Path) -> None:
    """Remove memory that was not resumed for long, and folders of interrupted freezes."""
    limit = time.time() - UNUSED
    for memory in every():
        with suppress(FileNotFoundError):
            if memory.folder.stat().st_mtime < limit:
                memory.remove()
    for left in home.glob(f"{files.TEMPORARY}*"):
        pid = left.name.removeprefix(files.TEMPORARY).partition("-")[0]
        if pid.isdigit() and not machine.read_process_start(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _home() -> Path:
    return machine.state_directory() / "memory"
