"""Shared memory that processes leave behind when they are killed: the kernel keeps it for ever.

Segments of System V say which process has made them. Files in ``/dev/shm`` (of ``shm_open``, named
semaphores) don't: one that was made since an environment began, and that only its processes have
mapped, is its own. PostgreSQL has one of each kind.
"""

from __future__ import annotations

import ctypes
import os
import struct

from . import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

_FOLDER = "/dev/shm"  # noqa: S108 - it is looked at
_SEGMENTS = "/proc/sysvipc/shm"
_IPC_RMID = 0
#: statx(2).
_AT_FDCWD, _NO_FOLLOW, _BIRTH = -100, 0x100, 0x800


class SharedMemory:
    """What some processes have, to be looked for as long as they run, and removed afterwards.

    Args:
        find: Finds the processes; called if there is anything that could be theirs.
        since: When the environment was started, in seconds since the epoch.
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
    """The files, and when each was made; those of which that can't be told are left out."""
    try:
        entries = list(os.scandir(_FOLDER))
    except OSError:
        return
    for entry in entries:
        if made_at := _birth(entry.path):
            yield entry.path, made_at


def _birth(path: str) -> float:
    """When a file was made: Python does not say, and its other times move when it is written."""
    libc, found = ctypes.CDLL(None), ctypes.create_string_buffer(256)
    if not hasattr(libc, "statx") or libc.statx(
        _AT_FDCWD, os.fsencode(path), _NO_FOLLOW, _BIRTH, found
    ):
        return 0.0
    # struct statx: which fields are there comes first; the time of birth, in seconds and
    # nanoseconds, is its tenth field.
    mask, seconds, nanoseconds = struct.unpack_from("=I76xqI", found)
    return float(seconds + nanoseconds / 1e9) if mask & _BIRTH else 0.0


def _mapped(pid: int) -> set[str]:
    """The files of the folder that a process has mapped, as far as this user may see."""
    try:
        lines = procfs.read(pid, "maps").splitlines()
    except OSError:
        return set()
    lines = [line for line in lines if _FOLDER.encode() in line]
    return {os.fsdecode(line.split(None, 5)[5]) for line in lines}
