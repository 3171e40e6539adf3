"""Start processes under a guard: the owner's side of ``supervisor``.

The guard is the parent, and on Linux the subreaper, of all that it starts. It ends them when it
is told to, when its owner dies in whatever way, or when their time is over.
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

from pytest_ephemeral.errors import EnvironmentGoneError, EphemeralError
from pytest_ephemeral.interpolation import spellings
from pytest_ephemeral.labels import ENVIRONMENT_VARIABLE
from pytest_ephemeral.providers.local import client, host, logs
from pytest_ephemeral.providers.local.client import END_TIME
from pytest_ephemeral.providers.local.host import GuardAddress

_PROGRAM = Path(__file__).with_name("supervisor") / "__main__.py"
#: Seconds between two looks at a running script's output.
_OUTPUT_INTERVAL = 0.05


class Spec(msgspec.Struct, frozen=True):
    """What a guard is to start, and to end.

    Attributes:
        id: The marker in the environment of all its processes.
        control: A folder, of this user alone, for the socket on which the guard is asked.
        processes: Commands by name, started in this order. A name becomes part of a file's.
        directory: Where they start; must exist.
        variables: Their whole environment; the marker is added.
        logs: A folder for a log per process: masked, rotated.
        readonly: Trees that they see read-only, where the kernel lets us.
        places: Trees that they see somewhere else, by where; see ``supervisor.placing``.
        mark: A file that is mounted onto itself in their view, by which they are found even if
            they clear their environment and their guard is killed; see ``view.protect``.
        remove: Folders removed at the end, however it ends.
        remove_orphaned: Removed too if it ends without its owner (owner death, expiry), while
            the descriptors are still held.
        secrets: Shown as ``***`` in the logs.
        expires_at: When it ends by itself, in seconds since the epoch.
        settle: A command run, detached, after it ended without its owner.
        accounts: By process, who it is started as, and where, if not as this user; see
            ``accounts.describe``. What is run inside it is under the empty name.
        descriptors: Locks and claimed addresses that the guard holds while it lives.
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
        """Where its guard is asked."""
        return GuardAddress(self.id, self.control)

    def to_wire(self, listener: int) -> bytes:
        """It, as the supervisor takes it: quicker to read there than JSON is to import."""
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
    """A guard that this process has started, and that lives no longer than it, unless kept.

    Its pipe is its lifeline: letting go of this object is as good as dying. As a context manager
    it ends everything on the way out.
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
        """Wait until the guard has ended, and with it everything.

        Args:
            timeout: Seconds; None for as long as it takes.

        Returns:
            The exit status of each process, negative for a signal; None for those that the
            guard has killed.

        Raises:
            TimeoutError: It still runs.
            EphemeralError: The guard itself broke down, or was killed.
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
        """End everything, and wait for it. Done twice, it is no error.

        Args:
            grace: See ``client.stop``.
            signal: The same.

        Raises:
            DestroyError: Something can't be killed.
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
        """Whether the guard has ended in order, with everything; else it was killed, or failed."""
        return bool(self._report) and not json.loads(self._report)["remaining"]

    def kill(self) -> None:
        """End the guard itself, at once: its children die with it, its folders stay."""
        self._process.kill()
        self._ends_within(None)

    def let_go(self) -> None:
        """Have no more to do with a guard that was told to outlive its owner."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()
        # Nobody waits for it any more, and subprocess need not warn that nobody did.
        self._process.returncode = 0

    def _ends_within(self, timeout: float | None) -> bool:
        """Wait for its end: read its report until the pipe closes, and collect its status."""
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
    """What there is to read; empty at the end; None when the time is over first."""
    patience = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return os.read(descriptor, 1 << 16) if poll.poll(patience) else None


def start(spec: Spec) -> Guard:
    """Start a guard and what it guards; does not wait until it has.

    A command that can't be run shows as one that has exited, with 126 or 127, and says why in
    its log.

    Raises:
        EphemeralError: Another guard of that id runs.
        ValueError: A process's name can't be part of a file's name.
    """
    for name in spec.processes:
        if not name or name.startswith(".") or "/" in name:
            raise ValueError(f"a process can't be called {name!r}: its log is a file of that name")
    spec.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    folders = [*spec.remove, *spec.remove_orphaned]
    with host.listen(spec.address) as listener:
        process = subprocess.Popen(
            # The folders are in its orders too; here they are for orders that never come.
            [sys.executable, "-I", "-S", str(_PROGRAM), spec.id, *map(str, folders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # What a guard holds open is what a CI step that ended may wait for.
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


def run_to_end(
    spec: Spec, *, on_output: Callable[[str], None] | None = None, timeout: float | None = None
) -> int:
    """Run one process under a guard, such as an install script, until it ends.

    Args:
        spec: Has one process. Its ``logs`` are not in what it has removed.
        on_output: Called with each line it prints, masked, without its line's end.
        timeout: Seconds it may take.

    Returns:
        Its exit status, negative for a signal. All that it started is dead.

    Raises:
        subprocess.TimeoutExpired: It took longer, and was killed.
        EphemeralError: The guard broke down.
    """
    (name,) = spec.processes
    deadline = None if timeout is None else time.monotonic() + timeout
    lines = _Lines(spec.logs, name, on_output or (lambda _: None))  # before it can print any
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
    """Hands on a growing log, line by line."""

    def __init__(self, folder: Path, process: str, hand_on: Callable[[str], None]) -> None:
        self._folder = folder
        self._process = process
        self._hand_on = hand_on
        self._offset = logs.end(folder, process)
        self._rest = b""

    def follow(self) -> None:
        """Hand on the lines that are whole by now."""
        position = logs.end(self._folder, self._process)
        if position == self._offset:
            return
        data = logs.read(self._folder, self._process, self._offset)
        self._offset += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._hand_on(line.decode(errors="replace").rstrip("\r"))

    def finish(self) -> None:
        """Hand on all that is left."""
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
