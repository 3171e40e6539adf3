"""How the board writes times and digests."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final


def span(seconds: float) -> str:
    """A length of time in its two largest units, such as ``1h 59m``."""
    parts = []
    rest = max(0, int(seconds))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2]) or "0s"


def ago(moment: datetime, now: datetime) -> str:
    """How long ago something was, in its largest unit: the past needs no seconds hand."""
    seconds = (now - moment).total_seconds()
    return f"{span(seconds).partition(' ')[0]} ago" if seconds >= 5 else "just now"


def left(moment: datetime, now: datetime) -> str:
    """How long it is until something is."""
    seconds = (moment - now).total_seconds()
    return f"in {span(seconds)}" if seconds > 0 else "over"


def exact(moment: datetime) -> str:
    """A moment for a machine, and for the hint under the mouse."""
    return moment.isoformat(timespec="seconds")


def short(digest: str) -> str:
    """The first digits of a digest."""
    return digest.rpartition(":")[2][:12]


FILTERS: Final[dict[str, Callable[..., str]]] = {
    "ago": ago,
    "left": left,
    "exact": exact,
    "short": short,
}
