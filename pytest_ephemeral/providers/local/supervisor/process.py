"""The named processes of a guard."""

from __future__ import annotations

import time

from . import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .control import Requester
    from .logs import ProcessLog


#: A process whose descriptors may be closed already, and whose status is not known yet: sched.h.
_EXITING = 0x4


class GuardedProcess:
    """One of the named processes."""

    def __init__(self, name: str, pid: int, output: int) -> None:
        self.name = name
        self.pid = pid
        self.output = output
        self.log: ProcessLog | None = None
        self.started_at = time.time()
        self.ended_at: float | None = None
        self.status: int | None = None  # negative: the signal that killed it

    def is_exiting(self) -> bool:
        """Whether it has begun to exit, which who talked to it may know, and was not collected."""
        if self.status is not None:
            return False
        try:
            # The ninth field of proc(5)'s stat, of which the second ends with the bracket.
            flags = processes.read(self.pid, "stat").rpartition(b")")[2].split()[6]
        except OSError:  # nor where there is no /proc
            return False
        return bool(int(flags) & _EXITING)

    def describe(self) -> dict[str, Any]:
        """It, as clients and the owner get it."""
        return {
            "name": self.name,
            "pid": self.pid,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "status": self.status,
        }


class Halt:
    """All processes were asked to end; whoever asked is told when they have.

    Attributes:
        client: Who asked.
        deadline: When they are killed, by ``kernel.uptime``.
    """

    def __init__(self, client: Requester, deadline: float) -> None:
        self.client = client
        self.deadline = deadline
