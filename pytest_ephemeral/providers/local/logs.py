"""Read the logs that guards write: by absolute offset, so that a mark stays exact."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from pathlib import Path

from pytest_ephemeral.providers.local.supervisor.logs import segment_name


def end(folder: Path, process: str) -> int:
    """How many bytes a process has printed in all."""
    start = max(_segments(folder).get(process, [0]))
    try:
        return start + (folder / segment_name(process, start)).stat().st_size
    except FileNotFoundError:
        return start


def read(folder: Path, process: str, since: int = 0, until: int | None = None) -> bytes:
    """What a process has printed between two offsets, as far as it is still kept."""
    parts: list[bytes] = []
    starts = sorted(_segments(folder).get(process, []))
    first = max(0, bisect_right(starts, since) - 1)
    for start in starts[first : None if until is None else bisect_left(starts, until)]:
        try:
            with (folder / segment_name(process, start)).open("rb") as segment:
                segment.seek(max(0, since - start))
                parts.append(segment.read(-1 if until is None else until - max(since, start)))
        except FileNotFoundError:  # it has just been rotated away
            parts.clear()
    return b"".join(parts)


def processes(folder: Path) -> list[str]:
    """The names of the processes that have a log here."""
    return sorted(_segments(folder))


def _segments(folder: Path) -> dict[str, list[int]]:
    """Where the segments of each process's log start."""
    found: dict[str, list[int]] = {}
    for path in folder.glob("*.log"):
        process, _, start = path.stem.rpartition(".")
        if process and start.isdecimal():
            found.setdefault(process, []).append(int(start))
    return found
