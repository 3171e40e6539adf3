"""Write files atomically: a process that is killed leaves no incomplete file."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TextIO

#: The prefix of the names of temporary files.
TEMPORARY: Final = ".new-"

_CHUNK = 1 << 20


def chunks(file: Path) -> Iterator[bytes]:
    """A file's content, in chunks of one mebibyte."""
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def read_regular(file: Path) -> bytes:
    """The content of a regular file. For a FIFO, it raises an error instead of waiting.

    Raises:
        OSError: It is not a regular file, or can't be read.
    """
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as stream:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "a folder", str(file))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", str(file))
        return stream.read()


def open_private_log(file: Path) -> TextIO:
    """Open a log for appending. Only this user can read it, as programs may print secrets."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(file, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)
    return os.fdopen(descriptor, "a", encoding="utf-8", errors="replace", buffering=1)


def digest_of(content: Iterable[bytes]) -> str:
    """The digest of content, ``sha256:…``. Takes ``chunks(file)`` or ``[data]``."""
    digest = hashlib.sha256()
    for chunk in content:
        digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def create(target: Path, content: Iterable[bytes], *, mode: int | None = None) -> None:
    """Create a file atomically and durably. Of several processes, exactly one succeeds.

    Args:
        target: The file.
        content: The content, in chunks.
        mode: The permissions; by default 0666 without the umask.

    Raises:
        FileExistsError: The file exists.
    """
    with _write_temporary(target, content, mode) as temporary:
        os.link(temporary, target)
        _sync_folder(target.parent)


def replace(target: Path, content: Iterable[bytes], *, mode: int | None = None) -> None:
    """Create or replace a file atomically and durably. Readers get the old or the new content.

    Args:
        target: The file.
        content: The content, in chunks.
        mode: The permissions; by default 0666 without the umask.
    """
    with _write_temporary(target, content, mode) as temporary:
        temporary.replace(target)
        _sync_folder(target.parent)


@contextmanager
def _write_temporary(target: Path, content: Iterable[bytes], mode: int | None) -> Iterator[Path]:
    """Write content to a temporary file in the target's folder, sync it, and remove it later."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # a FileExistsError must mean the target
        raise NotADirectoryError(errno.ENOTDIR, "not a folder", target.parent) from error
    temporary = target.with_name(TEMPORARY + os.urandom(8).hex())
    try:
        with temporary.open("xb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            temporary.chmod(mode)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Sync a folder, so that a new name in it survives a power failure; see fsync(2)."""
    if sys.platform == "win32":
        return  # Windows can't open folders, and NTFS journals names
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def hold_lock(file: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within the block, hold a lock that excludes all other processes of this machine.

    Waits without a limit. The lock file is created if needed and never removed: if it were, two
    processes could lock two files of the same name.

    Args:
        file: The lock file.
        waiting: Called once if another process holds the lock.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        if not _try_lock(descriptor):
            waiting()
            _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        while not _try_lock(descriptor):
            time.sleep(0.01)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
