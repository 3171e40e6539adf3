"""Write the logs of processes, with secrets masked and old segments removed.

A log is a sequence of segments. Each is named by the offset of its first byte in the process's
whole output. So a position is one number, which stays valid when old segments are removed.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: Bytes after which a new segment begins, and the number of segments to keep for each process.
SEGMENT_SIZE = 8 << 20
SEGMENTS_KEPT = 4

MASK = b"***"


def segment_name(process: str, start: int) -> str:
    """The file name of the segment of a process's log that begins at an offset."""
    return f"{process}.{start:020}.log"


class ProcessLog:
    """Writes the log of one process."""

    def __init__(self, folder: str, process: str, secrets: Sequence[bytes]) -> None:
        self._folder = folder
        self._process = process
        self._mask = Mask(secrets) if secrets else None
        self._starts: list[int] = []
        self._end = 0
        self._file = -1
        self._begin_segment()

    def write(self, data: bytes) -> None:
        """Add output. On a full disk, it is lost: processes must not block."""
        if self._mask:
            data = self._mask.feed(data)
        self._append(data)

    def flush(self) -> None:
        """Write output that was held back as a possible part of a secret."""
        if self._mask:
            self._append(self._mask.flush())

    def close(self) -> None:
        """Write the rest, and close the file."""
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
    """Replaces secrets in a stream of bytes, even if one arrives in two pieces."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        import re

        # The longest first: at one position, a regular expression takes the first alternative.
        self._secrets = sorted(filter(None, secrets), key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self._secrets)) or b"(?!)")
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Add data; return masked data, without a tail that may be the start of a secret."""
        data = self._held + data
        shown: list[bytes] = []
        done, undecided = 0, self._undecided(data, 0)
        for match in self._pattern.finditer(data):
            if match.start() >= undecided:  # it may be part of a longer secret
                break
            shown += (data[done : match.start()], MASK)
            done = match.end()
            if done > undecided:
                undecided = self._undecided(data, done)
        self._held = data[undecided:]
        return b"".join((*shown, data[done:undecided]))

    def flush(self) -> bytes:
        """Return the tail that was held back, masked: no more data comes for now."""
        held, self._held = self._held, b""
        return self._pattern.sub(MASK, held)

    def _undecided(self, data: bytes, start: int) -> int:
        """The start of the longest tail that may be the start of a secret."""
        longest = max((len(secret) for secret in self._secrets), default=1) - 1
        for at in range(max(start, len(data) - longest), len(data)):
            tail = data[at:]
            if any(len(tail) < len(s) and s.startswith(tail) for s in self._secrets):
                return at
        return len(data)
