"""Shared memory that processes leave behind when they are killed: the kernel keeps it for ever.

Segments of System V say which process has made them. Files in ``/dev/shm`` (of ``shm_open``, named
semaphores) don't: one that only processes of an environment have mapped, and that is younger than
it, is its own. PostgreSQL has one of each kind.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_FOLDER = "/dev/shm"  # noqa: S108 - it is looked at
_SEGMENTS = "/proc/sysvipc/shm"
_IPC_RMID = 0


class SharedMemory:
    """What some processes have, to be looked for as long as they run, and removed afterwards.

    Args:
        pids: The processes.
        since: When the environment was started, in seconds since the epoch.
    """

    def __init__(self, pids: Collection[int], since: float) -> None:
        self._segments = {id for id, creator, _ in _segments() if creator in pids}
        self._files: set[str] = set()
        young = {path for path, changed in _files() if changed >= since}
        if young:
            self._files = young & set().union(*(_mapped(pid) for pid in pids))

    def remove(self) -> None:
        """Remove what nobody uses now that those processes are gone."""
        for id, _, users in _segments():
            if id in self._segments and users == 0:
                ctypes.CDLL(None).shmctl(id, _IPC_RMID, None)
        if self._files:
            used = set().union(*(_mapped(int(pid)) for pid in os.listdir("/proc") if pid.isdigit()))
            for path in self._files - used:
                try:
                    os.unlink(path)
                except OSError:
                    continue


def _segments() -> Iterator[tuple[int, int, int]]:
    """The id of each segment, the process that has made it, and how many have attached it."""
    try:
        with open(_SEGMENTS) as file:
            names, *rows = [line.split() for line in file]
    except (OSError, ValueError):  # another system, or a kernel without them
        return
    for row in rows:
        said = dict(zip(names, row, strict=False))
        yield int(said["shmid"]), int(said["cpid"]), int(said["nattch"])


def _files() -> Iterator[tuple[str, float]]:
    """The files, and when each was changed last; made is not said."""
    try:
        entries = list(os.scandir(_FOLDER))
    except OSError:
        return
    for entry in entries:
        try:
            yield entry.path, entry.stat(follow_symlinks=False).st_ctime
        except OSError:
            continue


def _mapped(pid: int) -> set[str]:
    """The files of the folder that a process has mapped, as far as this user may see."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            lines = [line for line in file if _FOLDER.encode() in line]
    except OSError:
        return set()
    return {os.fsdecode(line.split(None, 5)[5].rstrip(b"\n")) for line in lines}
