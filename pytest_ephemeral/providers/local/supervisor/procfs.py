"""Read processes from /proc; on systems without it, the results are empty."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: The flag of an exiting process, from the kernel's sched.h.
_PF_EXITING = 0x4


def list_pids() -> Iterator[int]:
    """The ids of all processes, of all users."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    yield from (int(name) for name in names if name.isdigit())


def read(pid: int, name: str) -> bytes:
    """Read a process's file in /proc; unbuffered, which is faster for hundreds of files."""
    with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
        return file.readall()


def is_exiting(fields: Sequence[bytes]) -> bool:
    """Whether a process has begun to exit, by its fields: its files may be closed already."""
    return bool(int(fields[9]) & _PF_EXITING)


def read_fields(pid: int) -> list[bytes]:
    """The fields of a process's ``stat``, by their numbers in proc(5), from the third on."""
    # The second field is the program's name in brackets, which may have any characters.
    return [b"", b"", b"", *read(pid, "stat").rpartition(b")")[2].split()]
