"""What Linux tells of processes in /proc; elsewhere there is none to tell of."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Of a process's flags, in the kernel's sched.h: it is ending.
_PF_EXITING = 0x4


def list_pids() -> Iterator[int]:
    """The processes that there are now, of all users."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    yield from (int(name) for name in names if name.isdigit())


def read(pid: int, name: str) -> bytes:
    """A process's file in /proc; unbuffered, as hundreds of them are read, each in one piece."""
    with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
        return file.readall()


def is_exiting(fields: Sequence[bytes]) -> bool:
    """Whether a process with these fields has begun to end: its files may be closed already."""
    return bool(int(fields[9]) & _PF_EXITING)


def read_fields(pid: int) -> list[bytes]:
    """The fields of a process's ``stat``, by their numbers in proc(5); empty before the third."""
    # The second is the program's name in brackets and may hold anything.
    return [b"", b"", b"", *read(pid, "stat").rpartition(b")")[2].split()]
