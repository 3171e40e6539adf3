"""Wait for a condition; see ``pytest_ephemeral.testing.waiting``."""

from __future__ import annotations

import time
from collections.abc import Callable

from pytest_ephemeral.testing.waiting import idle_clock, until, until_gone

__all__ = ["eventually", "idle_clock", "until", "until_gone"]


def eventually(condition: Callable[[], object], within: float = 10.0) -> bool:
    """Whether a condition is met within some seconds, by ``idle_clock``."""
    clock = idle_clock()
    deadline = clock() + within
    while not condition():
        if clock() > deadline:
            return False
        time.sleep(0.01)
    return True
