"""Wait for a condition, with time limits that allow for a busy machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from pytest_ephemeral.errors import EphemeralError

T = TypeVar("T")

#: The share of the time that always counts, even if processes always wait for a processor.
_LEAST: Final = 0.1

#: Linux's count of the time in which processes waited for a processor: "some total", in
#: microseconds. https://docs.kernel.org/accounting/psi.html
_PRESSURE: Final = Path("/proc/pressure/cpu")


def until(look: Callable[[], T], *, within: float = 30.0) -> T:
    """Call a function until its result is true.

    Args:
        look: The function. It may raise ``OSError`` or ``EphemeralError``, which count as false:
            an engine may refuse a request while it removes something.
        within: Seconds after which the test fails, by ``idle_clock``.

    Returns:
        The result.

    Raises:
        AssertionError: The time is over; the message has the last result or error.
    """
    clock = idle_clock()
    deadline = clock() + within
    seen: object = None
    while clock() < deadline:
        try:
            if result := look():
                return result
            seen = result
        except (OSError, EphemeralError) as error:
            seen = error
        time.sleep(0.005)
    raise AssertionError(f"not within {within:g} s; seen last: {seen!r}")


def until_gone(look: Callable[[], Sequence[object]], *, within: float = 30.0) -> None:
    """Call a function until its result is empty.

    Args:
        look: Returns what is left; see ``until``.
        within: See ``until``.

    Raises:
        AssertionError: The time is over; the message names what is left.
    """
    left: Sequence[object] = ()

    def is_gone() -> bool:
        nonlocal left
        left = look()
        return not left

    try:
        until(is_gone, within=within)
    except AssertionError as error:
        raise AssertionError(f"{error}; left: {list(left)}") from None


def idle_clock() -> Callable[[], float]:
    """A clock in seconds, for time limits that are meant for an idle machine.

    Time in which processes wait for a processor does not count, except for a tenth: the process
    under test may be one that waits.
    """
    began, waited = time.monotonic(), _waited()

    def now() -> float:
        passed = time.monotonic() - began
        return max(passed - (_waited() - waited), passed * _LEAST)

    return now


def _waited() -> float:
    """Seconds in which a process has waited for a processor; 0 if Linux does not count it."""
    with suppress(OSError):
        return int(_PRESSURE.read_text().partition("total=")[2].split()[0]) / 1e6
    return 0.0
