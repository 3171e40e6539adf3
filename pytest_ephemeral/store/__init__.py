"""Where records live: the ledger, the catalog, approvals, promotions, archives of images.

A record is a few kilobytes of JSON under a slash-separated path. The two operations all safety
rests on are atomic creation and compare-and-swap; both hold between processes and machines.
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
    """A record, and the version to name when replacing it."""

    data: bytes
    version: str


class Store(Protocol):
    """Records and blobs by path.

    Attributes:
        url: What opens the same store again, from any folder of this machine.
    """

    url: str

    def create(self, path: str, data: bytes) -> str:
        """Create a record, durably, and return its version.

        Raises:
            RecordExistsError: It is there already; exactly one of many creators succeeds.
            StoreError: It can't be written (permissions, a full disk).
        """

    def read(self, path: str) -> Versioned:
        """Read a record.

        Raises:
            RecordMissingError: It is not there.
        """

    def replace(self, path: str, data: bytes, version: str) -> str:
        """Replace a record if it is still at ``version``, durably; return the new version.

        Raises:
            RecordConflictError: It has changed since, or is gone.
        """

    def delete(self, path: str) -> None:
        """Remove a record or blob. One that does not exist is not an error."""

    def paths(self, prefix: str) -> Iterator[str]:
        """The paths of all complete records under a prefix, sorted."""

    def records(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Those records with their content, by path. One that was removed meanwhile is left out.

        One that can't be read (its permissions, or no file) is given as empty, as no record is.
        """

    def upload(self, path: str, source: Path) -> None:
        """Upload a file's content. Existing content under that path stays."""

    def download(self, path: str, destination: Path) -> None:
        """Write a blob's content to a file, atomically.

        Raises:
            RecordMissingError: It is not there.
        """

    def has(self, path: str) -> bool:
        """Whether a record or blob exists."""


def open_store(url: str, root: Path) -> Store:
    """The store at a URL.

    Args:
        url: A folder, or ``s3://bucket/prefix``.
        root: What a relative folder is relative to.

    Raises:
        ConfigurationError: No store is of that kind.
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
    """Read a record, change it and write it back. Try again if it has changed in between.

    Args:
        store: Where it is.
        path: Which record.
        change: Given what the record holds; returns what it is to hold, or None to leave it. May
            be called more than once.

    Raises:
        RecordMissingError: It is not there.
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
    """The one name with that prefix.

    Args:
        wanted: The beginning of a name, or all of it.
        known: The names there are.
        what: What they are names of, for the message: ``environment``.
        missing: The message when none begins so, if another than that.

    Raises:
        NothingMatchedError: None begins so, or more than one; names the closest.
    """
    names = sorted(set(known))
    if wanted in names:
        return wanted
    matching = [name for name in names if wanted and name.startswith(wanted)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise NothingMatchedError(f"{what} {wanted!r} is ambiguous: {', '.join(matching)}")
    hint = closest(wanted, names) or " This store has none."
    raise NothingMatchedError(f"{missing or f'no {what} {wanted!r}.'}{hint}")


def parts_of(path: str) -> list[str]:
    """The parts of a record's path.

    Raises:
        StoreError: It would lead out of the store, or to a name the store needs itself.
    """
    parts = path.split("/")
    if "\0" in path or "\\" in path or any(not part or part.startswith(".") for part in parts):
        raise StoreError(
            f"{path!r} can't be a path in a store: its parts may not be empty, begin with "
            "a dot or hold a backslash"
        )
    return parts
