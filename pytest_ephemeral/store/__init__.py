"""The store of records and blobs: ledger, catalog, approvals, promotions, archives of images.

A record is a few kilobytes of JSON with a slash-separated path. All safety depends on two
operations, atomic creation and compare-and-swap, which work across processes and machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from pytest_ephemeral.errors import (
    ConfigurationError,
    NothingMatchedError,
    RecordConflictError,
    StoreError,
    closest,
)


class Versioned(NamedTuple):
    """A record's data, and its version, which ``Store.replace`` needs."""

    data: bytes
    version: str


class Store(Protocol):
    """Records and blobs by path.

    Attributes:
        url: The URL that opens the same store, from any folder of this machine.
    """

    url: str

    def create(self, path: str, data: bytes) -> str:
        """Create a record, durably, and return its version.

        Raises:
            RecordExistsError: It exists; exactly one of several creators succeeds.
            StoreError: It can't be written (permissions, a full disk).
        """

    def read(self, path: str) -> Versioned:
        """Read a record.

        Raises:
            RecordMissingError: It does not exist.
        """

    def replace(self, path: str, data: bytes, version: str) -> str:
        """Replace a record if it is still at ``version``, durably; return the new version.

        Raises:
            RecordConflictError: It was changed or deleted meanwhile.
        """

    def delete(self, path: str) -> None:
        """Remove a record or blob. One that does not exist is not an error."""

    def paths(self, prefix: str) -> Iterator[str]:
        """The paths of all complete records under a prefix, sorted."""

    def records(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """All complete records under a prefix: path and content, sorted by path.

        The content of a record that can't be read is empty, which no other record is.
        """

    def upload(self, path: str, source: Path) -> None:
        """Upload a file's content, unless the path exists."""

    def download(self, path: str, destination: Path) -> None:
        """Write a blob's content to a file, atomically.

        Raises:
            RecordMissingError: It does not exist.
        """

    def has(self, path: str) -> bool:
        """Whether a record or blob exists."""


def open_store(url: str, root: Path) -> Store:
    """The store at a URL.

    Args:
        url: A folder, or ``s3://bucket/prefix``.
        root: The folder that a relative path is relative to.

    Raises:
        ConfigurationError: The URL has an unknown scheme.
    """
    if url.startswith("s3://"):
        from pytest_ephemeral.store.s3 import S3Store

        return S3Store(url)
    if "://" not in url:
        from pytest_ephemeral.store.directory import DirectoryStore

        return DirectoryStore(root / url)
    raise ConfigurationError(
        f"{url!r} is not a supported store: give a folder, or s3://bucket/prefix"
    )


def update(store: Store, path: str, change: Callable[[bytes], bytes | None]) -> None:
    """Read a record, change it and write it back; try again if it was changed meanwhile.

    Args:
        store: The store.
        path: The record's path.
        change: Takes the record's content; returns the new content, or None to change nothing.
            It may be called several times.

    Raises:
        RecordMissingError: The record does not exist.
    """
    while True:
        data, version = store.read(path)
        if (changed := change(data)) is None:
            return
        try:
            store.replace(path, changed, version)
        except RecordConflictError:
            continue
        return


def by_prefix(wanted: str, known: Iterable[str], *, what: str, missing: str = "") -> str:
    """The only name with a prefix.

    Args:
        wanted: A prefix, or a whole name.
        known: All names.
        what: The kind of the names, for the message: ``environment``.
        missing: The message if no name has the prefix; empty for the default.

    Raises:
        NothingMatchedError: No name, or several, have the prefix; the message has similar names.
    """
    names = sorted(set(known))
    if wanted in names:
        return wanted
    matching = [name for name in names if wanted and name.startswith(wanted)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise NothingMatchedError(f"{what} {wanted!r} is ambiguous: {', '.join(matching)}")
    hint = closest(wanted, names) or f" The store has no {what}s."
    raise NothingMatchedError(f"{missing or f'no {what} {wanted!r}.'}{hint}")


def parts_of(path: str) -> list[str]:
    """The parts of a record's path.

    Raises:
        StoreError: The path leads out of the store, or to one of the store's own files.
    """
    parts = path.split("/")
    if "\0" in path or "\\" in path or any(not part or part.startswith(".") for part in parts):
        raise StoreError(
            f"{path!r} can't be a path in a store: its parts may not be empty, begin with "
            "a dot or hold a backslash"
        )
    return parts
