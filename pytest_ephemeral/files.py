"""Files that are there whole or not at all, whoever is killed and whenever."""

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

#: What the names of half-written files begin with.
TEMPORARY: Final = ".new-"

_CHUNK = 1 << 20


def chunks(file: Path) -> Iterator[bytes]:
    """A file's content, a megabyte at a time."""
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def read_regular(file: Path) -> bytes:
    """A file's content, if it is a file: nobody waits for the writer of a FIFO that was put there.

    Raises:
        OSError: It is no regular file, or can't be read.
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
    """A log to add lines to, which only this user can read: programs print what they know."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(file, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)
    return os.fdopen(descriptor, "a", encoding="utf-8", errors="replace", buffering=1)


def digest_of(content: Iterable[bytes]) -> str:
    """The name of content, ``sha256:…``. Takes ``chunks(file)`` or ``[data]``."""
    digest = hashlib.sha256()
    for chunk in content:
        digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def create(target: Path, content: Iterable[bytes], *, mode: int | None = None) -> None:
    """Make a file, durably; of many who try at once, exactly one succeeds.

    Args:
        target: The file.
        content: In parts.
        mode: Its permissions; by default what the umask leaves.

    Raises:
        FileExistsError: It is there already, whole.
    """
    with _write_temporary(target, content) as temporary:
        if mode is not None:
            temporary.chmod(mode)
        os.link(temporary, target)
        _sync_folder(target.parent)


def replace(target: Path, content: Iterable[bytes], *, mode: int | None = None) -> None:
    """Make a file or put another in its place, durably; readers see the old one or the new.

    Args:
        target: The file.
        content: In parts.
        mode: Its permissions; by default what the umask leaves.
    """
    with _write_temporary(target, content) as temporary:
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(target)
        _sync_folder(target.parent)


@contextmanager
def _write_temporary(target: Path, content: Iterable[bytes]) -> Iterator[Path]:
    """A temporary file beside the target, whole and on the disk; gone afterwards."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # it would be read as "the target exists"
        raise NotADirectoryError(errno.ENOTDIR, "not a folder", target.parent) from error
    temporary = target.with_name(TEMPORARY + os.urandom(8).hex())
    try:
        with temporary.open("xb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a new name in a folder survive a power cut (fsync(2): the file's own sync does not)."""
    if sys.platform == "win32":
        return  # it opens no folders, and NTFS journals names by itself
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def hold_lock(file: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock file, alone among all processes of this machine; wait for it as long as needed.

    The file is made when it is not there, and stays: removing it would let two hold "it".

    Args:
        file: The lock file.
        waiting: Called once when somebody else holds it.
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
