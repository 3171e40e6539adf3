"""The board's template filters: format times and digests."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

from pytest_ephemeral.durations import span


def ago(moment: datetime, now: datetime) -> str:
    """The time since a moment, in its largest unit, such as ``5 min ago``."""
    seconds = (now - moment).total_seconds()
    return f"{span(seconds).partition(' ')[0]} ago" if seconds >= 5 else "just now"


def time_until(moment: datetime, now: datetime) -> str:
    """The time until a moment, such as ``in 5 min``."""
    seconds = (moment - now).total_seconds()
    return f"in {span(seconds)}" if seconds > 0 else "now"


def exact(moment: datetime) -> str:
    """A moment in ISO 8601, for programs and tooltips."""
    return moment.isoformat(timespec="seconds")


def short(digest: str) -> str:
    """The first digits of a digest."""
    return digest.rpartition(":")[2][:12]


FILTERS: Final[dict[str, Callable[..., str]]] = {
    "ago": ago,
    "time_until": time_until,
    "exact": exact,
    "short": short,
}
