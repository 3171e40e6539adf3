"""Wait for a condition, or retry an action: with a time limit, back-off and jitter."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, TypeVar

#: The random part of a pause, so that several processes don't poll at the same moments.
JITTER: Final = 0.2

T = TypeVar("T")


class Clock(NamedTuple):
    """The functions for the current time and for pauses, in seconds; tests replace them."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


CLOCK: Final = Clock()


def wait_until(
    look: Callable[[], T],
    *,
    within: float,
    every: float,
    longest: float | None = None,
) -> T:
    """Call a function until its result is true.

    Args:
        look: The function. Its exceptions end the wait.
        within: Seconds to wait at most. The function is called at least once.
        every: Seconds between the first two calls.
        longest: Seconds: each pause is twice the one before, up to this. By default, pauses stay
            the same.

    Returns:
        The last result of the function; it is false if the time is over.
    """
    deadline = CLOCK.now() + within
    pauses = _pauses(every, longest)
    while not (found := look()) and CLOCK.now() < deadline:
        CLOCK.sleep(next(pauses))
    return found


def retry(
    act: Callable[[], T],
    *,
    when: Callable[[Exception], bool],
    within: float,
    every: float,
    longest: float | None = None,
    clock: Clock = CLOCK,
) -> T:
    """Call a function, and repeat it while it fails with an error that may be temporary.

    Args:
        act: The function.
        when: Returns whether to retry after an error. All other errors are raised at once.
        within: Seconds for all calls; after them, the error is raised.
        every: Seconds between the first two calls.
        longest: Seconds: each pause is twice the one before, up to this. By default, pauses stay
            the same.
        clock: The clock.

    Returns:
        The result of the function.
    """
    deadline = clock.now() + within
    pauses = _pauses(every, longest)
    while True:
        try:
            return act()
        except Exception as error:
            if not when(error) or clock.now() >= deadline:
                raise
        clock.sleep(next(pauses))


def _pauses(every: float, longest: float | None) -> Iterator[float]:
    pause, limit = every, max(every, longest or every)
    while True:
        yield pause * random.SystemRandom().uniform(1, 1 + JITTER)
        pause = min(pause * 2, limit)
