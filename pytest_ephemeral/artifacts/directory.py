"""An artifact repository in a folder.

The bytes are ``blobs/sha256/HEX/FILENAME``; what they are called, ``entries/NAME/VERSION.json``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec

from pytest_ephemeral import files
from pytest_ephemeral.artifacts.naming import (
    check_label,
    matching_files,
    name_and_version,
)
from pytest_ephemeral.errors import ArtifactError, RecordExistsError, RecordMissingError, closest
from pytest_ephemeral.models import Artifact, decode, encode
from pytest_ephemeral.store.directory import DirectoryStore

_SHA256 = "sha256:"


class DirectoryRepository:
    """Artifacts as files of a folder; see ``Repository`` for what each method promises.

    Args:
        folder: Made when something is first pushed.
    """

    def __init__(self, folder: Path) -> None:
        self._store = DirectoryStore(folder)
        self.url = self._store.url

    def push(self, file: Path, *, name: str | None = None, version: str | None = None) -> Artifact:
        """Keep a file."""
        artifact = _described(file, name, version)
        try:
            return self._keep(artifact, file)
        except RecordExistsError:
            kept = self._read(_entry(artifact))
        if kept.digest == artifact.digest:
            return kept
        raise ArtifactError(
            f"{artifact.name}@{artifact.version} already stands for {kept.digest} "
            f"({kept.filename}), and {file} is {artifact.digest}: what a version means never "
            "changes. Build it under another version, or give one with `--version`"
        )

    def entries(self) -> list[Artifact]:
        """All of them, by name and then by the time they were pushed."""
        found = [self._read(path) for path in self._store.paths("entries")]
        return sorted(found, key=lambda artifact: (artifact.name, artifact.pushed_at))

    def find(self, wanted: str, root: Path) -> Artifact:
        """The artifact that a recipe wants."""
        if wanted.startswith(_SHA256):
            return self._by_digest(wanted)
        matches = matching_files(wanted, root)
        if not matches and "@" in wanted and not set(wanted) & set("*?[/"):
            return self._by_version(wanted)
        return self._pushed_match(wanted, root, matches)

    def fetch(self, artifact: Artifact) -> Path:
        """The artifact as a checked file."""
        file = self._store.file(_blob(artifact))
        try:
            digest = files.digest_of(files.chunks(file))
        except OSError as error:
            raise ArtifactError(
                f"{artifact.name}@{artifact.version} can't be read from the repository: "
                f"{file}: {error.strerror}. Push it again with `pytest-ephemeral artifact push`"
            ) from error
        if digest != artifact.digest:
            raise ArtifactError(
                f"{artifact.name}@{artifact.version} is no longer what was pushed: {file} is now "
                f"{digest}, and was {artifact.digest}. Remove that file, and push the right one "
                "again with `pytest-ephemeral artifact push`"
            )
        return file

    def _keep(self, artifact: Artifact, file: Path) -> Artifact:
        """Blob first, entry after: an entry always has its bytes."""
        self._store.upload(_blob(artifact), file)
        self._store.create(_entry(artifact), encode(artifact))
        return artifact

    def _read(self, path: str) -> Artifact:
        try:
            return decode(self._store.read(path).data, Artifact)
        except msgspec.MsgspecError as error:
            raise ArtifactError(
                f"{self._store.file(path)} can't be read as an artifact's entry: {error}. "
                "Remove it, and push the artifact again with `pytest-ephemeral artifact push`"
            ) from error

    def _by_digest(self, wanted: str) -> Artifact:
        found = {a.digest: a for a in self.entries() if a.digest.startswith(wanted)}
        if len(found) == 1:
            return next(iter(found.values()))
        if not found:
            raise ArtifactError(
                f"no artifact {wanted} is in the repository {self.url}. "
                "See what is with `pytest-ephemeral artifact list`"
            )
        raise ArtifactError(
            f"{wanted} is the beginning of several artifacts: {', '.join(sorted(found))}. "
            "Give more digits"
        )

    def _by_version(self, wanted: str) -> Artifact:
        name, _, version = wanted.rpartition("@")
        try:
            return self._read(f"entries/{check_label(name)}/{check_label(version)}.json")
        except RecordMissingError:
            known = [f"{artifact.name}@{artifact.version}" for artifact in self.entries()]
            raise ArtifactError(
                f"no artifact {wanted} is in the repository {self.url}.{closest(wanted, known)} "
                "Push it with `pytest-ephemeral artifact push FILE`"
            ) from None

    def _pushed_match(self, wanted: str, root: Path, matches: list[Path]) -> Artifact:
        """Push the one file that a glob found, under a local version if its own is taken."""
        by_digest = {_digest(match): match for match in matches}
        if not by_digest:
            raise _nothing_built(wanted, root)
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


def _described(file: Path, name: str | None, version: str | None) -> Artifact:
    digest = _digest(file)
    said_name, said_version = name_and_version(file, digest)
    return Artifact(
        name=check_label(name or said_name),
        version=check_label(version or said_version),
        filename=file.name,
        digest=digest,
        size=file.stat().st_size,
        pushed_at=datetime.now(UTC),
    )


def _digest(file: Path) -> str:
    try:
        return files.digest_of(files.chunks(file))
    except OSError as error:
        raise ArtifactError(f"{file} can't be read as an artifact: {error.strerror}") from error


def _entry(artifact: Artifact) -> str:
    return f"entries/{artifact.name}/{artifact.version}.json"


def _blob(artifact: Artifact) -> str:
    return f"blobs/sha256/{artifact.digest.removeprefix(_SHA256)}/{artifact.filename}"


def _short(digest: str) -> str:
    return digest.removeprefix(_SHA256)[:12]


def _nothing_built(wanted: str, root: Path) -> ArtifactError:
    folder = (root / wanted).parent
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        there = f"{folder} holds {', '.join(names[:8]) or 'nothing'}"
        there += f" and {len(names) - 8} more" if len(names) > 8 else ""
    except (OSError, ValueError):
        there = f"there is no folder {folder} that can be read"
    python = wanted.endswith((".whl", ".tar.gz"))
    build = "`python -m build`" if python else "the command that builds it"
    return ArtifactError(
        f"no file matches the artifact {wanted!r} in {root}: {there}. Build it first, with {build}"
    )
