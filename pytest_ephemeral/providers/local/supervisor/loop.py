"""The event loop of a guard: start processes, watch them, and end them."""

from __future__ import annotations

import fcntl
import os
import time

from . import groups, kernel, processes, view
from .process import GuardedProcess
from .restarts import Restarts

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence
    from typing import Any

    from .control import Requester
    from .orders import Orders

#: The same as labels.ENVIRONMENT_VARIABLE, which can't be imported here.
MARKER = "PYTEST_EPHEMERAL_ENVIRONMENT"

_READ_SIZE = 1 << 18
#: The most bytes of output to read after a process has ended, before its end is reported.
_LAST_OUTPUT = 16 << 20
#: Seconds to wait for an exiting process to end, which takes longer if it has much memory.
_EXIT_PATIENCE = 0.5
#: Seconds between checks: of the clock, as the machine may have been suspended; of the owner,
#: without a pidfd; and of processes that are stopping.
_CLOCK_INTERVAL, _OWNER_INTERVAL, _STOP_INTERVAL = 60.0, 0.25, 0.02


class Supervisor(Restarts):
    """One guard."""

    def __init__(self, orders: Orders) -> None:
        super().__init__(orders.owner)
        self._orders = orders
        self._marker = f"{MARKER}={orders.id}"
        self._variables = {**orders.variables, MARKER: orders.id}
        self._since = time.time()
        self._set_expiry(orders.expires_at)
        self._listener: socket.socket | None = None
        self._refused = ""
        self._processes: list[GuardedProcess] = []
        self._groups: list[int] = []  # the process groups: each is its first process's id
        self._runs: dict[int, Requester] = {}
        self._stops: list[Requester] = []
        self._stop_by: float | None = None  # when stopping processes are killed
        self._crash = ""

    # -- its life --------------------------------------------------------------------------

    def guard(self) -> None:
        """Run until the end; then end all processes in any case."""
        try:
            self._start()
            while not self._ending:
                self._turn()
        except BaseException:
            import traceback

            self._crash = traceback.format_exc()
        finally:
            self._end()

    def _start(self) -> None:
        for descriptor in (*self._orders.descriptors, self._orders.listener):
            os.set_inheritable(descriptor, False)
        self._watch_signals()
        self._watch_owner()
        kernel.adopt_orphans()
        self._refused = view.protect(
            list(self._orders.readonly), self._orders.mark, self._orders.places
        )
        if self._refused and self._orders.places:
            raise OSError(f"nothing can be mounted here: {self._refused}")
        if self._orders.mark and not kernel.is_mounted(self._orders.mark):
            self._note_unmarked(self._orders.mark)
        for name, argv in self._orders.argvs.items():
            self._start_process(name, argv)
        self._open_logs()
        self._open_control()

    def _note_unmarked(self, mark: str) -> None:
        """Note, before any process runs, that processes may not be found without this guard."""
        from .files import UNMARKED

        path = os.path.join(os.path.dirname(mark), UNMARKED)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def _turn(self) -> None:
        ready = self._poll.poll(self._patience() * 1000)
        # Read output first, so that all output before a status request is in the log.
        outputs = {process.output for process in self._processes}
        for descriptor, _ in sorted(ready, key=lambda event: event[0] not in outputs):
            if descriptor in self._handlers:
                self._handlers[descriptor]()
        if self._ending:
            return
        if self._halt and self._is_over(self._halt.deadline):
            self._finish_halt(self._halt)
        if self._owner and os.getppid() != self._owner:
            self._ending = "owner"
        elif self._deadline is not None and kernel.uptime() >= self._deadline:
            self._ending = "expired"
        elif self._stop_by is not None and self._is_over(self._stop_by):
            self._ending = "stop"

    def _set_expiry(self, expires_at: float | None) -> None:
        """Convert an expiry from wall-clock time to a deadline by ``kernel.uptime``."""
        self._expires_at = expires_at
        self._deadline = None if expires_at is None else kernel.uptime() + expires_at - time.time()

    def _patience(self) -> float:
        """Seconds until the next check, if no event comes before."""
        patience = _CLOCK_INTERVAL if hasattr(os, "pidfd_open") else _OWNER_INTERVAL
        patience = patience if self._stop_by is None and self._halt is None else _STOP_INTERVAL
        if self._deadline is None:
            return patience
        return max(0.0, min(patience, self._deadline - kernel.uptime() + 0.001))

    def _end(self) -> None:
        orphaned = self._ending in {"owner", "expired"}
        left = self._end_processes()
        for process in self._processes:
            if process.log:
                self._drain(process)
                process.log.close()
        if not left:  # keep the folder while a process runs: it is found by the folder
            from .files import remove_folders

            if self._layers:
                self._layers.remove()
            remove_folders(self._orders, orphaned=orphaned)
        for client in self._runs.values():
            client.close()
        if self._listener:
            self._listener.close()
        for descriptor in self._orders.descriptors:
            os.close(descriptor)
        from .control import tell_owner

        answer = {
            "remaining": left,
            "processes": [process.describe() for process in self._processes],
            "crash": self._crash,
        }
        tell_owner(1, answer)
        for client in self._stops:  # their connections end with this process
            client.answer(answer)
        if self._orders.settle and orphaned:
            processes.start_detached(self._orders.settle, without=MARKER)

    # -- processes -------------------------------------------------------------------------

    def _start_process(self, name: str, argv: Sequence[str]) -> None:
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            try:
                fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _READ_SIZE)
            except OSError:
                pass  # over this user's limit for pipes (pipe(7)): a smaller one is only slower
        nothing = os.open(os.devnull, os.O_RDONLY)
        pid = self._spawn(name, argv, (nothing, writing, writing))
        os.close(nothing)
        os.close(writing)
        self._processes.append(GuardedProcess(name, pid, reading))
        self._groups.append(pid)

    def _spawn(self, name: str, argv: Sequence[str], stdio: Sequence[int]) -> int:
        """Start a process with its account, in the account's folder."""
        account = self._orders.accounts.get(name)
        directory, variables = self._orders.directory, self._variables
        if account:
            directory, variables = account["directory"], {**variables, **account["variables"]}
        return processes.spawn(
            argv, directory=directory, variables=variables, stdio=stdio, account=account
        )

    def _open_logs(self, known: Sequence[GuardedProcess] = ()) -> None:
        """Open the logs of all processes, or continue those of earlier processes by name."""
        from functools import partial

        from .logs import ProcessLog

        secrets = [secret.encode() for secret in self._orders.secrets]
        logs = {process.name: process.log for process in known}
        for process in self._processes:
            log = logs.get(process.name)
            process.log = log or ProcessLog(self._orders.logs, process.name, secrets)
            self._watch(process.output, partial(self._read, process))

    def _read(self, process: GuardedProcess) -> int:
        """Copy output of a process to its log; return the number of bytes."""
        if process.output not in self._handlers or not process.log:
            return 0
        try:
            data = os.read(process.output, _READ_SIZE)
        except BlockingIOError:
            return 0
        if data:
            process.log.write(data)
        else:
            self._unwatch(process.output)
            process.log.flush()
        return len(data)

    def _drain(self, process: GuardedProcess) -> None:
        """Read the rest of a process's output, with a limit: its daemon may print without end."""
        total = 0
        while total < _LAST_OUTPUT and (size := self._read(process)):
            total += size

    def _reap(self) -> None:
        while ended := processes.reap():
            pid, status = ended
            if client := self._runs.pop(pid, None):
                self._dismiss(client, {"status": status})
            for process in self._processes:
                if process.pid == pid and process.status is None:
                    self._drain(process)
                    process.status, process.ended_at = status, time.time()
        if not self._orders.keep_after_exit and all(p.ended_at for p in self._processes):
            self._ending = self._ending or "finished"

    # -- requests --------------------------------------------------------------------------

    def _open_control(self) -> None:
        import socket

        from .control import accept

        listener = self._listener = socket.socket(fileno=self._orders.listener)
        listener.setblocking(False)

        def handle() -> None:
            if client := accept(listener):
                self._watch(client.connection.fileno(), lambda: self._converse(client))

        self._watch(self._orders.listener, handle)

    def _converse(self, client: Requester) -> None:
        try:
            request = client.receive()
        except EOFError:
            self._dismiss(client, None)
            if self._runs.pop(client.pid, None):
                processes.kill_tree(client.pid)
            return
        if request is not None and (answer := self._serve(client, request)) is not None:
            self._dismiss(client, answer)

    def _dismiss(self, client: Requester, answer: Mapping[str, Any] | None) -> None:
        self._unwatch(client.connection.fileno())
        if answer is not None:
            client.answer(answer)
        client.close()

    def _serve(self, client: Requester, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """Handle a request; return the answer, or None if it is sent later."""
        match request:
            case {"do": "status"}:
                return self._status()
            case {"do": "run", "argv": [str(), *_] as argv}:
                return self._run(client, argv, own=bool(request.get("own")))
            case {"do": "stop"}:
                self._unwatch(client.connection.fileno())
                self._stops.append(client)
                if (grace := request.get("grace", 0.0)) and self._stop_by is None:
                    self._stopping = groups.signal_groups(self._groups, request["signal"])
                self._stop_by = min(self._stop_by or 1e99, kernel.uptime() + grace)
                return None
            case {"do": "extend", "expires_at": float() | int() | None as expires_at}:
                self._set_expiry(expires_at)
            case {"do": "keep"}:
                self._owner = None
            case _:
                return self._serve_restart(client, request)
        return {}

    def _status(self) -> dict[str, Any]:
        patience = kernel.uptime() + _EXIT_PATIENCE
        while any(one.is_exiting() for one in self._processes) and kernel.uptime() < patience:
            time.sleep(0.001)
            self._reap()
        return {
            "pid": os.getpid(),
            "processes": [process.describe() for process in self._processes],
            "expires_at": self._expires_at,
            "expires_in": None if self._deadline is None else self._deadline - kernel.uptime(),
            "kept": self._owner is None,
            "writable": self._refused,
        }

    def _run(self, client: Requester, argv: Sequence[str], *, own: bool) -> dict[str, Any] | None:
        """Run a command like the environment's processes, or (``own``) like this process."""
        stdio = client.take_descriptors()
        try:
            if len(stdio) != 3:
                return {"error": "a command to run comes with three descriptors"}
            if own:
                variables = {**os.environ, MARKER: self._orders.id}
                client.pid = processes.spawn(argv, directory="/", variables=variables, stdio=stdio)
            else:
                client.pid = self._spawn("", argv, stdio)
        finally:
            for descriptor in stdio:
                os.close(descriptor)
        self._runs[client.pid] = client
        return None
