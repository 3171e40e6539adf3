"""The base of all artifact repositories: content and entries as files of a blob store.

The content of an artifact is in ``blobs/sha256/HEX/FILENAME``, its name and version are in
``entries/NAME/VERSION.json``. Both are written once and never changed.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

import msgspec

from pytest_ephemeral import files, machine
from pytest_ephemeral.artifacts.naming import (
    check_label,
    find_files,
    name_and_version,
    normalize_name,
)
from pytest_ephemeral.errors import (
    ArtifactError,
    RecordExistsError,
    RecordMissingError,
    UnlistedError,
    closest,
)
from pytest_ephemeral.models import Artifact, decode, encode
from pytest_ephemeral.store import Versioned, parts_of

SHA256: Final = "sha256:"
_MONTH: Final = 30 * 86400.0


class BlobStore(Protocol):
    """The storage of a repository's files: the methods of a ``Store`` that create and read."""

    url: str

    def create(self, path: str, data: bytes) -> str:
        """As ``Store.create``."""

    def read(self, path: str) -> Versioned:
        """As ``Store.read``."""

    def records(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """As ``Store.records``.

        Raises:
            UnlistedError: The storage can't list its files.
        """

    def upload(self, path: str, source: Path) -> None:
        """As ``Store.upload``."""

    def download(self, path: str, destination: Path) -> None:
        """As ``Store.download``."""


class StoredRepository:
    """An artifact repository in a blob store; see ``Repository`` for the methods.

    Args:
        blobs: The blob store with its files.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self.url = blobs.url

    def push(self, file: Path, *, name: str | None = None, version: str | None = None) -> Artifact:
        """See ``Repository``."""
        with _copy_of(file) as copy:  # a build may still be writing the file
            artifact = _describe_file(copy, name, version)
            try:
                return self._keep(artifact, copy)
            except RecordExistsError:
                kept = self._read(entry_path(artifact))
        if kept.digest == artifact.digest:
            return kept
        raise ArtifactError(
            f"{artifact.name}@{artifact.version} is already {kept.digest} "
            f"({kept.filename}), and {file} is {artifact.digest}: a version never changes. "
            "Build it under another version, or give one with `--version`"
        )

    def entries(self) -> list[Artifact]:
        """See ``Repository``."""
        found = [self._decode(*record) for record in self._blobs.records("entries")]
        return sorted(found, key=lambda artifact: (artifact.name, artifact.pushed_at))

    def find(self, wanted: str, root: Path) -> Artifact:
        """See ``Repository``."""
        if wanted.startswith(SHA256):
            return self._by_digest(wanted)
        if (root / wanted).is_dir():
            return self._packed(root / wanted)
        matches = find_files(wanted, root)
        if not matches and "@" in wanted and not set(wanted) & set("*?[/"):
            return self._by_version(wanted)
        return self._pushed_match(wanted, root, matches)

    def fetch(self, artifact: Artifact) -> Path:
        """See ``Repository``. The file is a copy in this machine's state folder, made once."""
        file = machine.state_directory() / "artifacts" / "/".join(parts_of(blob_path(artifact))[2:])
        if not file.is_file() or files.digest_of(files.chunks(file)) != artifact.digest:
            _remove_old_copies(file.parent.parent)
            machine.make_state_folder(file.parent)
            self._download(artifact, file)
        os.utime(file)  # the time of its last use, for _remove_old_copies
        return file

    def _download(self, artifact: Artifact, file: Path) -> None:
        label = f"{artifact.name}@{artifact.version} in the repository {self.url}"
        again = "Push it again with `pytest-ephemeral artifact push`"
        unchecked = file.with_name(f"{files.TEMPORARY}{os.urandom(8).hex()}")
        try:
            self._blobs.download(blob_path(artifact), unchecked)
            digest = files.digest_of(files.chunks(unchecked))
            if digest != artifact.digest:
                raise ArtifactError(
                    f"{label} is no longer what was pushed: {blob_path(artifact)} is now {digest}, "
                    f"and was {artifact.digest}. Remove it there. {again}"
                )
            unchecked.replace(file)
        except RecordMissingError:
            raise ArtifactError(f"{label} is gone: {blob_path(artifact)}. {again}") from None
        finally:
            unchecked.unlink(missing_ok=True)

    def _keep(self, artifact: Artifact, file: Path) -> Artifact:
        """Write the content first and the entry after it, so that each entry has its content."""
        self._blobs.upload(blob_path(artifact), file)
        self._blobs.create(entry_path(artifact), encode(artifact))
        return artifact

    def _read(self, path: str) -> Artifact:
        return self._decode(path, self._blobs.read(path).data)

    def _decode(self, path: str, data: bytes) -> Artifact:
        try:
            artifact = decode(data, Artifact)
        except msgspec.MsgspecError as error:
            raise ArtifactError(
                f"{self.url}/{path} can't be read as an artifact's entry: {error}. "
                "Remove it, and push the artifact again with `pytest-ephemeral artifact push`"
            ) from error
        if path not in {entry_path(artifact), digest_path(artifact.digest)}:
            raise ArtifactError(
                f"{self.url}/{path} is the entry of {artifact.name}@{artifact.version} "
                f"({artifact.digest}): it was copied or forged. Find out who wrote it, and remove "
                "it"
            )
        return artifact

    def _by_digest(self, wanted: str) -> Artifact:
        found = {a.digest: a for a in self.entries() if a.digest.startswith(wanted)}
        if len(found) == 1:
            return next(iter(found.values()))
        if not found:
            raise ArtifactError(
                f"no artifact {wanted} is in the repository {self.url}. "
                "List them with `pytest-ephemeral artifact list`"
            )
        raise ArtifactError(
            f"{wanted} matches several artifacts: {', '.join(sorted(found))}. Give more digits"
        )

    def _by_version(self, wanted: str) -> Artifact:
        name, _, version = wanted.rpartition("@")
        try:
            return self._read(f"entries/{check_label(name)}/{check_label(version)}.json")
        except RecordMissingError:
            meant = closest(wanted, self._known_labels())
            raise ArtifactError(
                f"no artifact {wanted} is in the repository {self.url}.{meant} "
                "Push it with `pytest-ephemeral artifact push FILE`"
            ) from None

    def _packed(self, folder: Path) -> Artifact:
        """Pack a folder into one file with the folder's name, and push that."""
        from pytest_ephemeral.artifacts.folder import pack

        name = normalize_name(folder.resolve().name)
        with tempfile.TemporaryDirectory(prefix="pytest-ephemeral-") as place:
            file = Path(place, f"{name}.tar")
            with file.open("wb") as stream:
                pack(folder, stream)
            return self.push(file)

    def _known_labels(self) -> list[str]:
        try:
            return [f"{artifact.name}@{artifact.version}" for artifact in self.entries()]
        except UnlistedError:
            return []

    def _pushed_match(self, wanted: str, root: Path, matches: list[Path]) -> Artifact:
        """Push the one file that matches; with a local version if its own version is used."""
        by_digest = {_digest(match): match for match in matches}
        if not by_digest:
            raise _no_file_error(wanted, root)
        if len(by_digest) > 1:
            raise ArtifactError(
                f"{wanted!r} matches {len(by_digest)} different files in {root}: "
                f"{', '.join(match.name for match in matches)}. Remove the old ones, or name one"
            )
        ((digest, file),) = by_digest.items()
        name, version = name_and_version(file, digest)
        try:
            taken = self._read(f"entries/{name}/{version}.json").digest != digest
        except RecordMissingError:
            taken = False
        return self.push(file, version=f"{version}+{_short(digest)}" if taken else version)


def _describe_file(file: Path, name: str | None, version: str | None) -> Artifact:
    digest = _digest(file)
    default_name, default_version = name_and_version(file, digest)
    return Artifact(
        name=check_label(name or default_name),
        version=check_label(version or default_version),
        filename=file.name,
        digest=digest,
        size=file.stat().st_size,
        pushed_at=datetime.now(UTC),
    )


@contextmanager
def _copy_of(file: Path) -> Iterator[Path]:
    """A private copy of a file, with the same file name, for the duration of the block."""
    with tempfile.TemporaryDirectory(prefix="pytest-ephemeral-") as folder:
        copy = Path(folder, file.name)
        try:
            shutil.copyfile(file, copy)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise ArtifactError(
                    f"{file} can't be copied to {tempfile.gettempdir()}: the disk is full. Make "
                    "room, or set TMPDIR to a folder that has room"
                ) from error
            raise ArtifactError(f"{file} can't be read as an artifact: {error.strerror}") from error
        yield copy


def _digest(file: Path) -> str:
    try:
        return files.digest_of(files.chunks(file))
    except OSError as error:
        raise ArtifactError(f"{file} can't be read as an artifact: {error.strerror}") from error


def entry_path(artifact: Artifact) -> str:
    """The path of an artifact's entry in a repository."""
    return f"entries/{artifact.name}/{artifact.version}.json"


def digest_path(digest: str) -> str:
    """The path of an entry by its digest, for repositories that can't list their entries."""
    return f"digests/{digest.removeprefix(SHA256)}.json"


def blob_path(artifact: Artifact) -> str:
    """The path of an artifact's content in a repository."""
    return f"blobs/sha256/{artifact.digest.removeprefix(SHA256)}/{artifact.filename}"


def _remove_old_copies(folder: Path) -> None:
    """Remove local copies, complete or not, that were not used for a month."""
    for copy in folder.glob("*/*"):
        with suppress(OSError):  # another process removes it at the same time
            if copy.stat().st_mtime < time.time() - _MONTH:
                copy.unlink()
                copy.parent.rmdir()


def _short(digest: str) -> str:
    return digest.removeprefix(SHA256)[:12]


def _no_file_error(wanted: str, root: Path) -> ArtifactError:
    folder = (root / wanted).parent
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        there = f"{folder} holds {', '.join(names[:8]) or 'nothing'}"
        there += f" and {len(names) - 8} more" if len(names) > 8 else ""
    except (OSError, ValueError):
        missing = "can't be read" if folder.is_dir() else "does not exist"
        there = f"the folder {folder} {missing}"
    python = wanted.endswith((".whl", ".tar.gz"))
    build = "`python -m build`" if python else "the command that builds it"
    return ArtifactError(f"no file matches {wanted!r}: {there}. Build it first, with {build}")
