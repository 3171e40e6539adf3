"""Wait for what others do, as long as it takes and no longer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from pytest_ephemeral.errors import EphemeralError

T = TypeVar("T")

#: The share of the time that counts even where processes wait for a processor all the time.
_LEAST: Final = 0.1

#: How long processes have waited for a processor, if Linux counts that: "some total", in
#: microseconds. https://docs.kernel.org/accounting/psi.html
_PRESSURE: Final = Path("/proc/pressure/cpu")


def until(look: Callable[[], T], *, within: float = 30.0) -> T:
    """Look again and again until what is seen is true.

    Args:
        look: Returns something true when it is as it should be; may fail with an OSError or one of
            our errors: an engine that is asked while it removes something may refuse.
        within: Seconds after which the test fails, of a machine with nothing else to do.

    Returns:
        What was seen.
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
    """Look again and again until nothing is left; the failure names what is.

    Args:
        look: Returns what is left; may fail as for ``until``.
        within: As for ``until``.
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
    """A clock, in seconds, for time limits that are meant for an idle machine.

    Time in which processes wait for a processor does not count, but for a tenth of it: what the
    limit is for may be among them.
    """
    began, waited = time.monotonic(), _waited()

    def now() -> float:
        passed = time.monotonic() - began
        return max(passed - (_waited() - waited), passed * _LEAST)

    return now


def _waited() -> float:
    """Seconds in which some process has waited for a processor; 0 where that is not counted."""
    with suppress(OSError):
        return int(_PRESSURE.read_text().partition("total=")[2].split()[0]) / 1e6
    return 0.0
