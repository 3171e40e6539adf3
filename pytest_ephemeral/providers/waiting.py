"""Wait for something outside this process, or try it again: with a limit, back-off and jitter."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, TypeVar

#: The part of a pause that is left to chance, so that processes don't poll in step.
JITTER: Final = 0.2

T = TypeVar("T")


class Clock(NamedTuple):
    """What time it is, and how to let some pass. A test gives another."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


CLOCK: Final = Clock()


def wait_until(
    look: Callable[[], T],
    *,
    within: float,
    every: float,
    longest: float | None = None,
    clock: Clock = CLOCK,
) -> T:
    """Look until what is seen is true.

    Args:
        look: Returns what it sees. What it raises ends the wait.
        within: Seconds to wait at most. It looks once in any case.
        every: Seconds between the first two looks.
        longest: Pauses double until they are that long; by default they stay the same.
        clock: What to wait by.

    Returns:
        What was seen last; false if the time is over.
    """
    deadline = clock.now() + within
    pauses = _pauses(every, longest)
    while not (found := look()) and clock.now() < deadline:
        clock.sleep(next(pauses))
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
    """Do something, and do it again while it fails for a reason that may pass.

    Args:
        act: What to do.
        when: Whether an error is such a reason. Every other one is raised at once.
        within: Seconds after which the error is raised all the same.
        every: Seconds between the first two tries.
        longest: Pauses double until they are that long; by default they stay the same.
        clock: What to wait by.

    Returns:
        What ``act`` returns.
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
