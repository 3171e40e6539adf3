"""Signals by their names: what asks a process to stop, and what has killed one."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any, Final

from pytest_ephemeral.durations import Duration
from pytest_ephemeral.providers import grace

#: In an environment's handle: what asks it to stop.
_KEY: Final = "stop-signal"


def number_of(name: str) -> int:
    """A signal's number.

    Args:
        name: Such as ``SIGTERM``, ``INT``.

    Raises:
        ValueError: There is no such signal.
    """
    known = {each.name: int(each) for each in signal.Signals}
    full = name if name.startswith("SIG") else f"SIG{name}"
    if full not in known:
        raise ValueError(f"stop-signal: there is no signal {name!r} here: expected SIGTERM, …")
    return known[full]


def describe(seconds: Duration | None, stop_signal: str) -> dict[str, str]:
    """What an environment's handle has of how it ends."""
    return {} if seconds is None else {**grace.describe(seconds), _KEY: stop_signal}


def read(handle: Mapping[str, str]) -> int:
    """What an environment's handle says; SIGTERM where that is nothing, or no signal."""
    try:
        return number_of(handle[_KEY])
    except (KeyError, ValueError):
        return int(signal.SIGTERM)


def describe_exit(process: Mapping[str, Any]) -> str:
    """How a process ended, for people."""
    lived = f"{process['ended_at'] - process['started_at']:.1f} s"
    status = process["status"]
    if status >= 0:
        return f"{process['name']} exited with status {status} after {lived}"
    try:
        name = f" ({signal.Signals(-status).name})"
    except ValueError:  # a real-time signal
        name = ""
    who = f"{process['name']} (pid {process['pid']})"
    return f"{who} was killed by signal {-status}{name} {lived} after its start"
