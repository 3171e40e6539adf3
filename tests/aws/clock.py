"""A scheduler for delayed actions, and the delays that tests set."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Times:
    """The durations of AWS's operations in the simulated account, in seconds.

    Attributes:
        boot: From the launch until the instance runs.
        end: From the termination call until the instance is terminated.
        linger: How long its network interface remains after that.
        remembered: How long it can be described after that; an hour on AWS.
        ami: Until an AMI is available.
        unseen: Until a launched instance is visible.
        page: The number of items in one page of a listing; 0 for all.
        token: Whether descriptions of instances include their client token.
        stack: Until a stack is created, updated or deleted.
        root: Until a root volume is replaced.
    """

    boot: float = 0.1
    token: bool = True
    end: float = 0.1
    linger: float = 0.0
    remembered: float = 10.0
    ami: float = 0.1
    unseen: float = 0.0
    stack: float = 0.1
    root: float = 0.1
    page: int = 0


class Clock:
    """Runs actions after a delay, in a thread of its own."""

    def __init__(self) -> None:
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._changed = threading.Condition()
        threading.Thread(target=self._run, daemon=True).start()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        with self._changed:
            heapq.heappush(self._queue, (time.monotonic() + seconds, next(self._count), action))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue or self._queue[0][0] > time.monotonic():
                    due = self._queue[0][0] - time.monotonic() if self._queue else None
                    self._changed.wait(due)
                action = heapq.heappop(self._queue)[2]
            action()
