"""Wait for what others do, as long as it takes and no longer."""

from __future__ import annotations

import time
from collections.abc import Callable

from pytest_ephemeral.testing.waiting import until

__all__ = ["eventually", "until"]


def eventually(condition: Callable[[], object], within: float = 10.0) -> bool:
    """Whether something becomes true within that many seconds; the test says what it means."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
