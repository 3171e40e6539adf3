"""Start processes under a guard; this is the owner's side of ``supervisor``.

The guard is the parent, and on Linux the subreaper, of all processes that it starts. It ends them
on request, when its owner dies in any way, and at their expiry.
"""

from __future__ import annotations

import json
import marshal
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from pytest_ephemeral import machine
from pytest_ephemeral.errors import EnvironmentGoneError, EphemeralError, UnavailableError
from pytest_ephemeral.labels import ENVIRONMENT_VARIABLE
from pytest_ephemeral.masking import spellings
from pytest_ephemeral.providers.local import client, control_socket, logs
from pytest_ephemeral.providers.local.client import END_TIME
from pytest_ephemeral.providers.local.control_socket import GuardAddress

_PROGRAM = Path(__file__).with_name("supervisor") / "__main__.py"
#: Seconds between reads of a running script's output.
_OUTPUT_INTERVAL = 0.05


class Spec(msgspec.Struct, frozen=True):
    """The orders for a guard.

    Attributes:
        id: The id that marks all processes, in an environment variable.
        control: The folder of the guard's socket; only this user may enter it.
        processes: The commands by name, in starting order. Names become parts of file names.
        directory: The working folder of the processes; it must exist.
        variables: All environment variables of the processes; the marker is added.
        logs: The folder of the logs, one for each process, masked and rotated.
        readonly: Trees that are read-only to the processes, if the kernel supports that.
        places: Trees by the path that processes see them at; see ``supervisor.tree_mounts``.
        mark: A file that is mounted in the processes' mount namespace. They are found by it even
            if they clear their variables and the guard is killed; see ``view.protect``.
        remove: Folders to remove at the end in any case.
        remove_orphaned: Further folders to remove if the guard ends without its owner (owner's
            death, expiry), while the descriptors are still held.
        secrets: Values to mask in the logs.
        expires_at: The expiry, in seconds since the epoch.
        settle: A command to run, detached, if the guard has ended without its owner.
        accounts: By process, the account to start it as, if not this user; see
            ``accounts.describe``. The empty name is for commands that are run inside.
        descriptors: Locks and claimed addresses to hold while the guard lives.
        keep_after_exit: Whether the guard stays when all processes have ended.
    """

    id: str
    control: Path
    processes: Mapping[str, Sequence[str]]
    directory: Path
    variables: Mapping[str, str]
    logs: Path
    readonly: Sequence[Path] = ()
    places: Mapping[Path, Path] = {}
    mark: Path | None = None
    remove: Sequence[Path] = ()
    remove_orphaned: Sequence[Path] = ()
    secrets: Sequence[str] = ()
    expires_at: float | None = None
    settle: Sequence[str] = ()
    accounts: Mapping[str, Mapping[str, Any]] = {}
    descriptors: Sequence[int] = ()
    keep_after_exit: bool = True

    @property
    def address(self) -> GuardAddress:
        """The address of the guard."""
        return GuardAddress(self.id, self.control)

    def to_wire(self, listener: int) -> bytes:
        """The orders in the supervisor's format: marshal, as importing json takes longer."""
        orders = marshal.dumps(
            {
                "id": self.id,
                "argvs": {name: list(argv) for name, argv in self.processes.items()},
                "directory": str(self.directory),
                "variables": dict(self.variables),
                "logs": str(self.logs),
                "readonly": [str(path) for path in self.readonly],
                "places": {str(path): str(tree) for path, tree in self.places.items()},
                "mark": "" if self.mark is None else str(self.mark),
                "remove": [str(path) for path in self.remove],
                "remove_orphaned": [str(path) for path in self.remove_orphaned],
                "secrets": list(spellings(self.secrets)),
                "expires_at": self.expires_at,
                "settle": list(self.settle),
                "accounts": dict(self.accounts),
                "descriptors": list(self.descriptors),
                "keep_after_exit": self.keep_after_exit,
                "owner": os.getpid(),
                "listener": listener,
            }
        )
        return len(orders).to_bytes(8) + orders


class Guard:
    """A guard that this process has started. It ends with this process, unless it is kept.

    The guard also ends when this object's pipe is closed. As a context manager, it stops the guard
    at the end.
    """

    def __init__(self, address: GuardAddress, process: subprocess.Popen[bytes]) -> None:
        self.id = address.id
        self.address = address
        self.pid = process.pid
        self._process = process
        self._report = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self, timeout: float | None = None) -> dict[str, int | None]:
        """Wait until the guard and all its processes have ended.

        Args:
            timeout: Seconds to wait; None for no limit.

        Returns:
            The exit status of each process, negative for a signal; None for those that the
            guard has killed.

        Raises:
            TimeoutError: The guard still runs.
            EphemeralError: The guard crashed, or was killed.
        """
        if not self._ends_within(timeout):
            raise TimeoutError(f"{self.id} still runs after {timeout:g} s")
        if not self._report:
            raise EphemeralError(
                f"the guard of {self.id} (pid {self.pid}) was killed, or could not start. "
                f"See whether this prints an error: {sys.executable} -I -S {_PROGRAM} < /dev/null"
            )
        report = json.loads(self._report)
        if report["crash"]:
            raise EphemeralError(f"the guard of {self.id} crashed:\n{report['crash']}")
        return {process["name"]: process["status"] for process in report["processes"]}

    def stop(self, grace: float = 0.0, signal: int = 0) -> None:
        """End the guard and all its processes, and wait; it may have ended before.

        Args:
            grace: See ``client.stop``.
            signal: See ``client.stop``.

        Raises:
            DestroyError: A process can't be killed.
        """
        try:
            client.stop(self.address, grace, signal)
        except EnvironmentGoneError:
            pass
        finally:
            if not self._ends_within(END_TIME):
                self.kill()

    @property
    def has_reported(self) -> bool:
        """Whether the guard has ended normally, with all its processes."""
        return bool(self._report) and not json.loads(self._report)["remaining"]

    def kill(self) -> None:
        """Kill the guard: its children die with it, its folders stay."""
        self._process.kill()
        self._ends_within(None)

    def detach(self) -> None:
        """Close the pipes of a guard that is kept, and so outlives its owner."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
        # Without this, subprocess warns that the process still runs.
        self._process.returncode = 0

    def _ends_within(self, timeout: float | None) -> bool:
        """Read the guard's report until its pipe closes; return whether it ended in time."""
        reports = self._process.stdout
        if reports and not reports.closed:
            deadline = None if timeout is None else time.monotonic() + timeout
            while data := _read_until(reports.fileno(), deadline):
                self._report += data
            if data is None:
                return False
            for pipe in (self._process.stdin, reports):
                if pipe:
                    pipe.close()
        self._process.wait()
        return True


def _read_until(descriptor: int, deadline: float | None) -> bytes | None:
    """Read data from a pipe; empty at its end, None after the deadline."""
    patience = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return os.read(descriptor, 1 << 16) if poll.poll(patience) else None


def start(spec: Spec) -> Guard:
    """Start a guard, without waiting until it has started its processes.

    A command that can't be run appears as a process that has exited with 126 or 127, with the
    reason in its log.

    Raises:
        EphemeralError: Another guard with that id runs.
        UnavailableError: A guard could not see what it has to end.
        ValueError: A process's name can't be part of a file name.
    """
    _require_visible()
    for name in spec.processes:
        if not name or name.startswith(".") or "/" in name:
            raise ValueError(f"a process can't be called {name!r}: its log is a file of that name")
    spec.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    folders = [*spec.remove, *spec.remove_orphaned]
    with control_socket.listen(spec.address) as listener:
        process = subprocess.Popen(
            # The folders are arguments, too, for the case that the orders never arrive.
            [sys.executable, "-I", "-S", str(_PROGRAM), spec.id, *map(str, folders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A CI step that has ended may wait for files that the guard holds open.
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, ENVIRONMENT_VARIABLE: spec.id},
            pass_fds=[*spec.descriptors, listener.fileno()],
            start_new_session=True,
        )
        guard = Guard(spec.address, process)
        try:
            _write_whole(process, spec.to_wire(listener.fileno()))
        except BaseException:
            guard.kill()
            raise
    return guard


def _require_visible() -> None:
    if not machine.sees_processes():
        raise UnavailableError(
            "processes can't be watched here, so none is started: /proc is missing, or shows "
            "another PID namespace. Mount it with: mount -t proc proc /proc"
        )


def run_to_end(
    spec: Spec, *, on_output: Callable[[str], None] | None = None, timeout: float | None = None
) -> int:
    """Run one process under a guard, such as an install script, until it ends.

    Args:
        spec: The orders, with one process. Its ``logs`` must not be in a folder that it removes.
        on_output: Called with each line of output, masked, without the line's end.
        timeout: Seconds after which it is killed; None for no limit.

    Returns:
        Its exit status, negative for a signal. All processes that it started have ended.

    Raises:
        subprocess.TimeoutExpired: It took longer, and was killed.
        EphemeralError: The guard crashed.
    """
    (name,) = spec.processes
    deadline = None if timeout is None else time.monotonic() + timeout
    lines = _Lines(spec.logs, name, on_output or (lambda _: None))  # before the first output
    with start(msgspec.structs.replace(spec, keep_after_exit=False)) as guard:
        while True:
            try:
                (status,) = guard.wait(_OUTPUT_INTERVAL).values()
            except TimeoutError:
                lines.follow()
            else:
                lines.finish()
                break
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(spec.processes[name], timeout or 0)
    if status is None:
        raise EphemeralError(f"{spec.id} was stopped before it had ended")
    return status


class _Lines:
    """Passes a growing log to a function, line by line."""

    def __init__(self, folder: Path, process: str, hand_on: Callable[[str], None]) -> None:
        self._folder = folder
        self._process = process
        self._hand_on = hand_on
        self._offset = logs.end(folder, process)
        self._rest = b""

    def follow(self) -> None:
        """Pass on the new complete lines."""
        position = logs.end(self._folder, self._process)
        if position == self._offset:
            return
        data = logs.read(self._folder, self._process, self._offset)
        self._offset += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._hand_on(line.decode(errors="replace").rstrip("\r"))

    def finish(self) -> None:
        """Pass on all lines that are left."""
        self.follow()
        if self._rest:
            self._hand_on(self._rest.decode(errors="replace"))


def _write_whole(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    try:
        while data:
            data = data[process.stdin.write(data) :]
    except BrokenPipeError as error:
        raise EphemeralError(
            f"a guard could not start: see whether this prints an error: "
            f"{sys.executable} -I -S {_PROGRAM} < /dev/null"
        ) from error
