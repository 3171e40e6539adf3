"""Wait for what others do, as long as it takes and no longer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(look: Callable[[], T], *, within: float = 30.0) -> T:
    """Look again and again until what is seen is true.

    Args:
        look: Returns something true when it is as it should be; may fail with an OSError.
        within: Seconds after which the test fails.

    Returns:
        What was seen.
    """
    deadline = time.monotonic() + within
    seen: object = None
    while time.monotonic() < deadline:
        try:
            if result := look():
                return result
            seen = result
        except OSError as error:
            seen = error
        time.sleep(0.005)
    raise AssertionError(f"not within {within:g} s; seen last: {seen!r}")
