"""Signals by name: the one that stops processes, and the ones that killed processes."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any, Final

from pytest_ephemeral.durations import Duration
from pytest_ephemeral.providers import grace

#: In an environment's handle: the name of its stop signal.
_KEY: Final = "stop-signal"


def number_of(name: str) -> int:
    """The number of a signal.

    Args:
        name: Its name, such as ``SIGTERM`` or ``INT``.

    Raises:
        ValueError: There is no such signal.
    """
    known = {each.name: int(each) for each in signal.Signals}
    full = name if name.startswith("SIG") else f"SIG{name}"
    if full not in known:
        raise ValueError(f"stop-signal: there is no signal {name!r} here: expected SIGTERM, …")
    return known[full]


def describe(seconds: Duration | None, stop_signal: str) -> dict[str, str]:
    """The entries in an environment's handle for its grace and its stop signal."""
    return {} if seconds is None else {**grace.describe(seconds), _KEY: stop_signal}


def read(handle: Mapping[str, str]) -> int:
    """The number of the stop signal in a handle; SIGTERM if it has no valid one."""
    try:
        return number_of(handle[_KEY])
    except (KeyError, ValueError):
        return int(signal.SIGTERM)


def describe_exit(process: Mapping[str, Any]) -> str:
    """Why a process has ended, for people, from the guard's status."""
    duration = f"{process['ended_at'] - process['started_at']:.1f} s"
    status = process["status"]
    if status >= 0:
        return f"{process['name']} exited with status {status} after {duration}"
    try:
        name = f" ({signal.Signals(-status).name})"
    except ValueError:  # a real-time signal
        name = ""
    who = f"{process['name']} (pid {process['pid']})"
    return f"{who} was killed by signal {-status}{name} {duration} after its start"
