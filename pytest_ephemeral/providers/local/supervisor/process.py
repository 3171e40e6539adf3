"""The named processes of a guard."""

from __future__ import annotations

import time

from . import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .control import Requester
    from .logs import ProcessLog


class GuardedProcess:
    """A named process of a guard, with its output and log."""

    def __init__(self, name: str, pid: int, output: int) -> None:
        self.name = name
        self.pid = pid
        self.output = output
        self.log: ProcessLog | None = None
        self.started_at = time.time()
        self.ended_at: float | None = None
        self.status: int | None = None  # negative: the signal that killed it

    def is_exiting(self) -> bool:
        """Whether it has begun to exit, but was not reaped yet; its clients may know already."""
        try:
            return self.status is None and procfs.is_exiting(procfs.read_fields(self.pid))
        except OSError:
            return False

    def describe(self) -> dict[str, Any]:
        """Its state, as reported to clients and to the owner."""
        return {
            "name": self.name,
            "pid": self.pid,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "status": self.status,
        }


class Halt:
    """A pending request to end all processes.

    Attributes:
        client: The client that waits for the answer.
        deadline: When processes are killed that have not stopped, by ``kernel.uptime``.
    """

    def __init__(self, client: Requester, deadline: float) -> None:
        self.client = client
        self.deadline = deadline
