"""The grace of an environment, kept in its record: the time between the stop signal and a kill."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from pytest_ephemeral.durations import Duration

#: In an environment's handle: its grace, in seconds.
_KEY: Final = "grace"
#: Seconds; a longer grace in a record is a mistake or was tampered with.
_LONGEST: Final = 600.0


def describe(grace: Duration | None) -> dict[str, str]:
    """The part of an environment's handle with its template's grace; empty without one."""
    return {} if grace is None else {_KEY: f"{float(grace):g}"}


def read(handle: Mapping[str, str]) -> float:
    """The grace in a handle, in seconds; 0 means that the environment is killed at once."""
    try:
        seconds = float(handle.get(_KEY, 0))
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), _LONGEST) if math.isfinite(seconds) else 0.0
