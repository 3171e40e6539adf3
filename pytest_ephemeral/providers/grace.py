"""The time that an environment has to stop when it is asked to, as its record has it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from pytest_ephemeral.durations import Duration

#: In an environment's handle: its grace, in seconds.
_KEY: Final = "grace"
#: Seconds: a record that asks for more was tampered with, or a mistake.
_LONGEST: Final = 600.0


def describe(grace: Duration | None) -> dict[str, str]:
    """What an environment's handle has of its template's grace."""
    return {} if grace is None else {_KEY: f"{float(grace):g}"}


def read(handle: Mapping[str, str]) -> float:
    """Seconds that an environment has to stop; 0 where it is killed at once."""
    try:
        seconds = float(handle.get(_KEY, 0))
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), _LONGEST) if math.isfinite(seconds) else 0.0
