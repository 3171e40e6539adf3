"""Read a container's log, or the part of it between two marks.

A mark is the position of the end of a log: the time of its last line. Docker gives times to the
nanosecond, Podman before version 5 to the second, so a mark also counts the lines of that second.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from pytest_ephemeral.providers.docker.engine import Engine, EngineError, frames
from pytest_ephemeral.providers.docker.masking import Masking

if TYPE_CHECKING:
    import http.client

_SECOND: Final = 10**9

#: In the error for a container whose logging driver keeps no logs, such as ``none``.
_UNREADABLE: Final = "does not support reading"

#: The error of an engine's times in nanoseconds: Podman parses them as floats.
_ROUNDING: Final = 1000


class Mark(NamedTuple):
    """A position in a log.

    Attributes:
        when: The time in nanoseconds since 1970, by the engine's clock.
        lines: The number of lines with this time that are before the position.
    """

    when: int
    lines: int = 0

    @classmethod
    def read(cls, text: str) -> Self:
        """Parse the text that ``str`` returns."""
        when, _, lines = text.partition("+")
        return cls(int(when), int(lines or 0))

    def __str__(self) -> str:
        return f"{self.when}+{self.lines}" if self.lines else str(self.when)

    def since(self) -> str:
        """A time shortly before it, for a request to the engine."""
        return _time(self.when - _ROUNDING)

    def until(self) -> str:
        """A time shortly after it, for a request to the engine."""
        return _time(self.when + (_SECOND if self.lines else _ROUNDING))


#: The mark of an empty log, before all lines. It is not 0, which means "no limit" to engines.
BEGINNING: Final = Mark(_SECOND)
_END: Final = Mark(sys.maxsize)


def read(
    engine: Engine,
    container: str,
    masked: Masking,
    *,
    since: Mark | None = None,
    until: Mark | None = None,
    tail: int | None = None,
) -> list[tuple[int, str]]:
    """The lines of a container's log, with secrets masked.

    Args:
        engine: The container's engine.
        container: The container's name or id.
        masked: Masks the secrets in a line.
        since: The mark to begin after; None for the start.
        until: The mark to end at; None for the end.
        tail: How many lines to return at most; None for all.

    Returns:
        Each line with its time, in nanoseconds since 1970 by the engine's clock.

    Raises:
        EngineError: The container is gone.
    """
    query = {
        "since": since and since.since(),
        "until": until and until.until(),
        "tail": None if tail is None else str(tail),
    }
    first, last = since or BEGINNING, until or _END
    try:
        found = _read_lines(engine, container, query)
        return [(place.when, masked(line)) for place, line in found if first <= place < last]
    except EngineError as error:
        if _UNREADABLE not in str(error):
            raise
        return [] if since else [(0, f"({error})\n")]


def mark_end(engine: Engine, container: str) -> Mark:
    """The mark after the last line of a container's log."""
    try:
        # Two lines: Docker returns nothing for a line that is just being written.
        when = max(
            (place.when for place, _ in _read_lines(engine, container, {"tail": "2"}, timeout=10)),
            default=None,
        )
        if when is None:
            return BEGINNING
        if when % _SECOND:
            return Mark(when + 1)
        query = {"since": Mark(when).since()}
        places = [place for place, _ in _read_lines(engine, container, query)]
        return Mark(when, sum(1 for place in places if place.when == when))
    except (EngineError, TimeoutError):
        return BEGINNING


def _read_lines(
    engine: Engine, container: str, query: Mapping[str, str | None], timeout: float = 120
) -> Iterator[tuple[Mark, str]]:
    """The lines that an engine returns, each with its position."""
    asked: dict[str, Any] = {"stdout": True, "stderr": True, "timestamps": True, **query}
    before = Mark(0)
    path = f"/containers/{container}/logs"
    with engine.stream("GET", path, query=asked, timeout=timeout) as answer:
        for when, line in _lines(answer):
            before = Mark(when, before.lines + 1 if when == before.when else 0)
            yield before, line


def _lines(answer: http.client.HTTPResponse) -> Iterator[tuple[int, str]]:
    """Complete lines with their times: an engine cuts lines of more than 16 KB into pieces."""
    begun: dict[int, tuple[int, bytes]] = {}
    for channel, data in frames(answer):
        stamp, _, piece = data.partition(b" ")
        when, line = begun.pop(channel, (_when(stamp.decode()), b""))
        if (line + piece).endswith(b"\n"):
            yield when, (line + piece).decode(errors="replace")
        else:
            begun[channel] = when, line + piece
    for when, line in begun.values():
        yield when, line.decode(errors="replace")


def _when(stamp: str) -> int:
    """``2026-01-02T03:04:05.123456789Z`` in nanoseconds since 1970."""
    found = re.fullmatch(r"(.{19})(?:\.(\d+))?(Z|[+-]\d\d:\d\d)", stamp)
    if found is None:
        return 0
    seconds = int(datetime.fromisoformat(found[1] + found[3].replace("Z", "+00:00")).timestamp())
    return seconds * _SECOND + int((found[2] or "0").ljust(9, "0"))


def _time(nanoseconds: int) -> str:
    """A time in the form of requests: seconds since 1970, to the nanosecond."""
    return f"{nanoseconds // _SECOND}.{nanoseconds % _SECOND:09d}"
