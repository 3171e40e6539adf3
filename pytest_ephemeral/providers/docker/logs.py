"""What a container has printed: all of it, or what is between two positions.

A mark says where a log ended: the time of its last line. Docker tells that to the nanosecond,
Podman before its version 5 only to the second, so that a mark also counts the lines of its second.
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

#: What an engine says of a container whose logging driver keeps nothing here, such as ``none``.
_UNREADABLE: Final = "does not support reading"

#: Nanoseconds by which an engine may take a time for another: Podman reads it as a float.
_ROUNDING: Final = 1000


class Mark(NamedTuple):
    """A place in a log.

    Attributes:
        when: In nanoseconds since 1970, by the engine's clock.
        lines: How many lines of that very time are before it.
    """

    when: int
    lines: int = 0

    @classmethod
    def read(cls, text: str) -> Self:
        """From what ``str`` gives."""
        when, _, lines = text.partition("+")
        return cls(int(when), int(lines or 0))

    def __str__(self) -> str:
        return f"{self.when}+{self.lines}" if self.lines else str(self.when)

    def since(self) -> str:
        """A time that engines take, shortly before it."""
        return _time(self.when - _ROUNDING)

    def until(self) -> str:
        """A time that engines take, shortly after it."""
        return _time(self.when + (_SECOND if self.lines else _ROUNDING))


#: In an empty log: before everything, but not 0, which engines take for "no mark".
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
    """What a container has printed, its secrets masked.

    Args:
        engine: Where it runs.
        container: Its name or id.
        masked: Hides its secrets.
        since: Where to begin.
        until: Where to stop.
        tail: A number of lines.

    Returns:
        Lines, each with when it was printed, in nanoseconds since 1970 by the engine's clock.

    Raises:
        EngineError: It is gone.
    """
    query = {
        "since": since and since.since(),
        "until": until and until.until(),
        "tail": None if tail is None else str(tail),
    }
    first, last = since or BEGINNING, until or _END
    try:
        placed = _placed(engine, container, query)
        return [(place.when, masked(line)) for place, line in placed if first <= place < last]
    except EngineError as error:
        if _UNREADABLE not in str(error):
            raise
        return [] if since else [(0, f"({error})\n")]


def mark_end(engine: Engine, container: str) -> Mark:
    """Where a container's log ends: right after its last line."""
    try:
        # Of a line that is being written this very moment, Docker gives nothing: hence two.
        when = max(
            (place.when for place, _ in _placed(engine, container, {"tail": "2"}, timeout=10)),
            default=None,
        )
        if when is None:
            return BEGINNING
        if when % _SECOND:
            return Mark(when + 1)
        query = {"since": Mark(when).since()}
        return Mark(
            when, sum(1 for place, _ in _placed(engine, container, query) if place.when == when)
        )
    except (EngineError, TimeoutError):
        return BEGINNING


def _placed(
    engine: Engine, container: str, query: Mapping[str, str | None], timeout: float = 120
) -> Iterator[tuple[Mark, str]]:
    """The lines that an engine gives, each with its place."""
    asked: dict[str, Any] = {"stdout": True, "stderr": True, "timestamps": True, **query}
    before = Mark(0)
    path = f"/containers/{container}/logs"
    with engine.stream("GET", path, query=asked, timeout=timeout) as answer:
        for when, line in _lines(answer):
            before = Mark(when, before.lines + 1 if when == before.when else 0)
            yield before, line


def _lines(answer: http.client.HTTPResponse) -> Iterator[tuple[int, str]]:
    """Whole lines, and when each began: an engine cuts those of more than 16 KB into pieces."""
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
    """A time as engines take it: seconds since 1970, to the nanosecond."""
    return f"{nanoseconds // _SECOND}.{nanoseconds % _SECOND:09d}"
