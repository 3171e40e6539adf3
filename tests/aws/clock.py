"""A clock that tests set, and times of AWS."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Times:
    """How long, in seconds, what takes AWS its time takes here.

    Attributes:
        boot: Until an instance runs.
        end: Until one that was terminated is.
        linger: How long its network interface is there after that.
        remembered: How long it can be described after that: for AWS, an hour.
        ami: Until an AMI is available.
        unseen: Until what was launched can be seen.
        page: How many of what is listed come in one page; 0 for all.
        token: Whether instances come with their client token.
        stack: Until a stack is made, changed or deleted.
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
    """Does things later."""

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
