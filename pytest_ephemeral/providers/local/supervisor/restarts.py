"""End an environment's processes and start them again, for a rollback."""

from __future__ import annotations

import os

from . import groups, kernel, processes
from .process import Halt
from .watcher import Watcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from .control import Requester
    from .layers import WriteLayers
    from .orders import Orders
    from .process import GuardedProcess


class Restarts(Watcher):
    """The part of a guard that restarts its processes."""

    _orders: Orders
    _marker: str
    _since: float
    _processes: list[GuardedProcess]
    _groups: list[int]
    _runs: dict[int, Requester]
    if TYPE_CHECKING:

        def _start_process(self, name: str, argv: Sequence[str]) -> None: ...
        def _open_logs(self, known: Sequence[GuardedProcess] = ()) -> None: ...
        def _drain(self, process: GuardedProcess) -> None: ...
        def _dismiss(self, client: Requester, answer: Mapping[str, Any] | None) -> None: ...

    def __init__(self, owner: int) -> None:
        super().__init__(owner)
        self._halt: Halt | None = None
        self._stopping: list[int] = []  # the process groups that were signaled to stop
        self._layers: WriteLayers | None = None

    def _serve_restart(
        self, client: Requester, request: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Handle a request; return the answer, or None if it is sent later."""
        match request:
            case {"do": "halt", "grace": float() | int() as grace}:
                if grace:
                    self._stopping = groups.signal_groups(self._groups, request["signal"])
                self._halt = Halt(client, kernel.uptime() + grace)
                return None
            case {"do": "layer", "folders": [str(), *_] as folders, "number": int() as number}:
                return {"refused": self._layer(folders, number)}
            case {"do": "start"}:
                self._start_again()
                return {}
        return {"error": f"the guard does not understand {request!r}"}

    def _is_over(self, deadline: float) -> bool:
        """Whether the stopping processes have stopped, or the deadline has passed."""
        return kernel.uptime() >= deadline or not groups.have_members(self._stopping)

    def _end_processes(self) -> list[int]:
        """Kill all processes, and remove their shared memory; return those that are left."""
        from .shared_memory import SharedMemory

        started = [*self._runs, *self._groups]
        shared = SharedMemory(lambda: {*started, *processes.descendants(os.getpid())}, self._since)
        left = processes.end_descendants(self._marker, started)
        shared.remove()
        return left

    def _finish_halt(self, halt: Halt) -> None:
        """Kill the processes that still run, read their last output, and answer the client."""
        self._halt = None
        left = self._end_processes()
        for process in self._processes:
            self._drain(process)
            if process.output in self._handlers:
                self._unwatch(process.output)
            os.close(process.output)
            process.output = -1
        for client in self._runs.values():
            self._dismiss(client, None)
        self._runs.clear()
        self._dismiss(halt.client, {"remaining": left})

    def _layer(self, folders: Sequence[str], number: int) -> str:
        """Make processes write into a new layer; return why this is not possible, or empty."""
        from .layers import WriteLayers

        if not (self._orders.mark and kernel.is_mounted(self._orders.mark)):
            return "nothing can be mounted for it alone"
        self._layers = self._layers or WriteLayers()
        return self._layers.renew(folders, number)

    def _start_again(self) -> None:
        """Start all processes again, after a halt."""
        before, self._processes, self._groups = self._processes, [], []
        for name, argv in self._orders.argvs.items():
            self._start_process(name, argv)
        self._open_logs(before)
