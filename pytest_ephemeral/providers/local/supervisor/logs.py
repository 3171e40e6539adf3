"""Logs of what processes print: written whole, masked, and capped.

A log is a row of segments named by the offset they start at, counted from the process's first
byte. So a position in it is one number that stays right while old segments are removed.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: Bytes after which a new segment is begun, and how many are kept of a process.
SEGMENT_SIZE = 8 << 20
SEGMENTS_KEPT = 4

MASK = b"***"


def segment_name(process: str, start: int) -> str:
    """The file's name of the segment of a process's log that starts at an offset."""
    return f"{process}.{start:020}.log"


class ProcessLog:
    """The log of one process, being written."""

    def __init__(self, folder: str, process: str, secrets: Sequence[bytes]) -> None:
        self._folder = folder
        self._process = process
        self._mask = Mask(secrets) if secrets else None
        self._starts: list[int] = []
        self._end = 0
        self._file = -1
        self._begin_segment()

    def write(self, data: bytes) -> None:
        """Add what was read. What can't be written (a full disk) is lost: nobody may block."""
        if self._mask:
            data = self._mask.feed(data)
        self._append(data)

    def flush(self) -> None:
        """Write what might have been the beginning of a secret: nothing more comes for now."""
        if self._mask:
            self._append(self._mask.flush())

    def close(self) -> None:
        """Write the rest, and let go of the file."""
        self.flush()
        os.close(self._file)

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                if self._end - self._starts[-1] >= SEGMENT_SIZE:
                    self._begin_segment()
                written = os.write(self._file, view[:SEGMENT_SIZE])
                self._end += written
                view = view[written:]
        except OSError:
            return

    def _begin_segment(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        file = os.open(self._path(self._end), flags, 0o600)
        if self._file >= 0:
            os.close(self._file)
        self._file = file
        self._starts.append(self._end)
        if len(self._starts) > SEGMENTS_KEPT:
            os.unlink(self._path(self._starts.pop(0)))

    def _path(self, start: int) -> str:
        return os.path.join(self._folder, segment_name(self._process, start))


class Mask:
    """Replaces secrets in a stream of bytes, also where one arrives in two pieces."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        import re

        # The longest first: of two secrets at one place, a regular expression takes the first.
        self._secrets = sorted(filter(None, secrets), key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self._secrets)) or b"(?!)")
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What can be shown now, masked. Holds back only what may be a secret's beginning."""
        data = self._held + data
        shown: list[bytes] = []
        done, undecided = 0, self._undecided(data, 0)
        for match in self._pattern.finditer(data):
            if match.start() >= undecided:  # a longer secret may begin before this one
                break
            shown += (data[done : match.start()], MASK)
            done = match.end()
            if done > undecided:
                undecided = self._undecided(data, done)
        self._held = data[undecided:]
        return b"".join((*shown, data[done:undecided]))

    def flush(self) -> bytes:
        """What was held back; no more of it will come."""
        held, self._held = self._held, b""
        return self._pattern.sub(MASK, held)

    def _undecided(self, data: bytes, start: int) -> int:
        """Where the longest tail begins that more bytes might complete to a secret."""
        longest = max((len(secret) for secret in self._secrets), default=1) - 1
        for at in range(max(start, len(data) - longest), len(data)):
            tail = data[at:]
            if any(len(tail) < len(s) and s.startswith(tail) for s in self._secrets):
                return at
        return len(data)
