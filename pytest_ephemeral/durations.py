"""Read and format lengths of time."""

from __future__ import annotations

import re
from typing import Final


class Duration(float):
    """A length of time in seconds, written ``"90s"``, ``"5m"`` or ``"2h"``."""

    __slots__ = ()
    PATTERN: Final = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$"
    #: A hundred years, in seconds. A longer duration is a mistake, and dates can't hold it.
    LONGEST: Final = 36500 * 86400.0
    _SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read a duration.

        Args:
            text: A number and a unit: ms, s, m, h or d.

        Raises:
            ValueError: The text is not a duration, or a longer one than ``LONGEST``.
        """
        found = re.fullmatch(cls.PATTERN, text) if isinstance(text, str) else None
        if found is None:
            raise ValueError(f'expected a duration such as "90s", "5m" or "2h", got {text!r}')
        unit = found[2]
        seconds = float(text.removesuffix(unit)) * cls._SECONDS[unit]
        if seconds > cls.LONGEST:
            raise ValueError(f"expected at most {cls(cls.LONGEST)}, got {text!r}")
        return cls(seconds)

    def __str__(self) -> str:
        for unit in ("d", "h", "m", "s"):
            count = self / self._SECONDS[unit]
            if count >= 1 and count == int(count):
                return f"{int(count)}{unit}"
        return f"{self * 1000:g}ms" if self < 1 else f"{float(self):g}s"


def span(seconds: float) -> str:
    """Format a number of seconds in its two largest units, such as ``1h 59m``."""
    parts = []
    rest = max(0, int(seconds))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2]) or "0s"
