"""Remove shared memory of killed processes, which the kernel would keep for ever.

System V segments record the process that created them. Files in ``/dev/shm`` (from ``shm_open``
and named semaphores) do not: a file belongs to an environment if it was created after the
environment's start, and only the environment's processes have mapped it. PostgreSQL uses both.
"""

from __future__ import annotations

import ctypes
import os
import struct

from . import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

_FOLDER = "/dev/shm"  # noqa: S108 - it is only listed
_SEGMENTS = "/proc/sysvipc/shm"
_IPC_RMID = 0
#: statx(2).
_AT_FDCWD, _NO_FOLLOW, _BIRTH = -100, 0x100, 0x800


class SharedMemory:
    """The shared memory of an environment: found while its processes run, and removed after that.

    Args:
        find: Finds the environment's processes; called only if there may be shared memory.
        since: The start of the environment, in seconds since the epoch.
    """

    def __init__(self, find: Callable[[], Collection[int]], since: float) -> None:
        segments = list(_segments())
        young = {path for path, made_at in _files() if made_at >= since}
        pids = find() if segments or young else ()
        self._segments = {id for id, creator, _ in segments if creator in pids}
        self._files: set[str] = set()
        if young:
            self._files = young & set().union(*(_mapped(pid) for pid in pids))

    def remove(self) -> None:
        """Remove the shared memory that no process uses any more."""
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
    """For each segment: its id, its creator's process id, and the number of attached processes."""
    try:
        with open(_SEGMENTS) as file:
            names, *rows = [line.split() for line in file]
    except (OSError, ValueError):  # another system, or a kernel without System V IPC
        return
    for row in rows:
        fields = dict(zip(names, row, strict=False))
        yield int(fields["shmid"]), int(fields["cpid"]), int(fields["nattch"])


def _files() -> Iterator[tuple[str, float]]:
    """The files with their creation times, without files whose time is not known."""
    try:
        entries = list(os.scandir(_FOLDER))
    except OSError:
        return
    for entry in entries:
        if made_at := _birth(entry.path):
            yield entry.path, made_at


def _birth(path: str) -> float:
    """A file's creation time in seconds since the epoch, by statx; 0 if it is not known."""
    libc, found = ctypes.CDLL(None), ctypes.create_string_buffer(256)
    if not hasattr(libc, "statx") or libc.statx(
        _AT_FDCWD, os.fsencode(path), _NO_FOLLOW, _BIRTH, found
    ):
        return 0.0
    # struct statx: the mask of valid fields comes first; the tenth field is the birth time, in
    # seconds and nanoseconds.
    mask, seconds, nanoseconds = struct.unpack_from("=I76xqI", found)
    return float(seconds + nanoseconds / 1e9) if mask & _BIRTH else 0.0


def _mapped(pid: int) -> set[str]:
    """The files in ``/dev/shm`` that a process has mapped, as far as this user can see."""
    try:
        lines = procfs.read(pid, "maps").splitlines()
    except OSError:
        return set()
    lines = [line for line in lines if _FOLDER.encode() in line]
    return {os.fsdecode(line.split(None, 5)[5]) for line in lines}
