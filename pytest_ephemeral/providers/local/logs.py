"""Read the logs that guards write. Positions are absolute offsets, which rotation leaves valid."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from pathlib import Path

from pytest_ephemeral.providers.local.supervisor.logs import segment_name


def end(folder: Path, process: str) -> int:
    """The number of bytes that a process has printed."""
    start = max(_segments(folder).get(process, [0]))
    try:
        return start + (folder / segment_name(process, start)).stat().st_size
    except FileNotFoundError:
        return start


def read(folder: Path, process: str, since: int = 0, until: int | None = None) -> bytes:
    """The output of a process between two offsets, without segments that are rotated away.

    Args:
        folder: The folder of the logs.
        process: The name of the process.
        since: The offset to begin at, in bytes.
        until: The offset to end at; None for the end.
    """
    parts: list[bytes] = []
    starts = sorted(_segments(folder).get(process, []))
    first = max(0, bisect_right(starts, since) - 1)
    for start in starts[first : None if until is None else bisect_left(starts, until)]:
        try:
            with (folder / segment_name(process, start)).open("rb") as segment:
                segment.seek(max(0, since - start))
                parts.append(segment.read(-1 if until is None else until - max(since, start)))
        except FileNotFoundError:  # rotated away meanwhile
            parts.clear()
    return b"".join(parts)


def processes(folder: Path) -> list[str]:
    """The names of the processes with a log in a folder."""
    return sorted(_segments(folder))


def _segments(folder: Path) -> dict[str, list[int]]:
    """The start offsets of the segments of each process's log."""
    found: dict[str, list[int]] = {}
    for path in folder.glob("*.log"):
        process, _, start = path.stem.rpartition(".")
        if process and start.isdecimal():
            found.setdefault(process, []).append(int(start))
    return found
