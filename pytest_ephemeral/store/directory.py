"""A store in a folder, on this machine or on a file system that several machines mount.

Creation is a hard link, which the system creates for exactly one of several writers.
Compare-and-swap is a read and a rename under the store's lock file. Incomplete files have special
names, and are never read as records.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pytest_ephemeral import files
from pytest_ephemeral.errors import (
    RecordConflictError,
    RecordExistsError,
    RecordMissingError,
    StoreError,
)
from pytest_ephemeral.store import Versioned, parts_of

#: The name of the store in a project's own folder.
DEFAULT_NAME: Final = ".ephemeral"

_LOCK: Final = ".lock"
_DAY: Final = 86400.0


class DirectoryStore:
    """Records and blobs as files in a folder; see ``Store``.

    Args:
        folder: The folder, which is created at the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.url = str(self.folder)

    def create(self, path: str, data: bytes) -> str:
        """Create a record."""
        file = self.file(path)
        with _explain_errors("create", path, self.folder):
            _sweep(file.parent)
            self._ignore()
            try:
                files.create(file, [data])
            except FileExistsError:
                raise RecordExistsError(f"{path} is in the store {self.url} already") from None
        return files.digest_of([data])

    def _ignore(self) -> None:
        """Write a ``.gitignore`` into a project's own store, as pytest does in its cache."""
        file = self.folder / ".gitignore"
        if self.folder.name == DEFAULT_NAME and not file.exists():
            with suppress(FileExistsError):
                files.create(file, [b"# made by pytest-ephemeral\n*\n"])

    def read(self, path: str) -> Versioned:
        """Read a record."""
        file = self.file(path)
        with _explain_errors("read", path, self.folder):
            try:
                data = files.read_regular(file)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise RecordMissingError(f"the store {self.url} has no {path}") from None
        return Versioned(data, files.digest_of([data]))

    def replace(self, path: str, data: bytes, version: str) -> str:
        """Replace a record if it is still at that version."""
        file = self.file(path)
        with self._hold_lock(path):
            try:
                current = self.read(path).version
            except RecordMissingError:
                raise RecordConflictError(f"{path} was removed meanwhile") from None
            if current != version:
                raise RecordConflictError(f"{path} was changed by someone else meanwhile")
            files.replace(file, [data])
        return files.digest_of([data])

    def delete(self, path: str) -> None:
        """Remove a record or blob."""
        file = self.file(path)
        if not self.has(path):
            return
        with self._hold_lock(path):  # a rename by another process must not restore the file
            file.unlink(missing_ok=True)

    def paths(self, prefix: str) -> Iterator[str]:
        """The paths of all complete records in the folder ``prefix`` and below, sorted."""
        top = self.file(prefix.rstrip("/")) if prefix.strip("/") else self.folder
        found: list[str] = []
        with _explain_errors("list", prefix, self.folder):
            for folder, folders, names in os.walk(top, onerror=_unless_gone):
                folders[:] = [name for name in folders if not name.startswith(".")]
                base = Path(folder).relative_to(self.folder)
                found += [(base / name).as_posix() for name in names if not name.startswith(".")]
        yield from sorted(found)

    def records(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """All complete records with their content."""
        for path in self.paths(prefix):
            try:
                data = self.read(path).data
            except RecordMissingError:
                continue
            except StoreError:
                data = b""
            yield path, data

    def upload(self, path: str, source: Path) -> None:
        """Upload a file's content, unless the path exists."""
        file = self.file(path)
        if self.has(path):
            return
        with _explain_errors("write", path, self.folder):
            _sweep(file.parent)
            try:
                files.create(file, files.chunks(source))
            except FileExistsError:
                return  # another process was faster; its content is the same, as the name is

    def download(self, path: str, destination: Path) -> None:
        """Write a blob's content to a file, atomically."""
        file = self.file(path)
        if not self.has(path):
            raise RecordMissingError(f"the store {self.url} has no {path}")
        with _explain_errors("read", path, self.folder):
            files.replace(destination, files.chunks(file))

    def has(self, path: str) -> bool:
        """Whether a record or blob exists."""
        file = self.file(path)
        with _explain_errors("read", path, self.folder):
            return file.is_file()

    def file(self, path: str) -> Path:
        """The file of a path.

        Raises:
            StoreError: The path leads out of the store, or to one of the store's own files.
        """
        return self.folder.joinpath(*parts_of(path))

    @contextmanager
    def _hold_lock(self, path: str) -> Iterator[None]:
        with _explain_errors("change", path, self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with files.hold_lock(self.folder / _LOCK):
                yield


@contextmanager
def _explain_errors(verb: str, path: str, folder: Path) -> Iterator[None]:
    """Turn errors of the system into ``StoreError``, with the likely cause and advice."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            cause = "the disk is full. Make room, or point `store` elsewhere"
        elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            cause = (
                f"permission denied. See who owns it with `ls -ld {folder}`, "
                "or point `store` elsewhere"
            )
        elif error.errno == errno.ENOTDIR:
            cause = "a file stands where a folder is needed. Move it, or point `store` elsewhere"
        else:
            cause = error.strerror or str(error)
        raise StoreError(f"can't {verb} {path} in the store {folder}: {cause}") from error


def _unless_gone(error: OSError) -> None:
    """Raise errors of ``os.walk``, except for a folder that does not exist (any more)."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _sweep(folder: Path) -> None:
    """Remove incomplete files of writers that were killed long ago."""
    for leftover in folder.glob(files.TEMPORARY + "*"):
        try:
            if leftover.stat().st_mtime < time.time() - _DAY:
                leftover.unlink()
        except FileNotFoundError:
            continue  # its writer, or another sweep, has removed it
