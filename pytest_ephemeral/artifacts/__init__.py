"""The artifact repository: built, versioned files, named by their SHA-256."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.models import Artifact


class Repository(Protocol):
    """Where artifacts are kept. All methods raise ``StoreError`` when that can't be reached.

    Attributes:
        url: What opens the same repository again, from any folder of this machine.
    """

    url: str

    def push(self, file: Path, *, name: str | None = None, version: str | None = None) -> Artifact:
        """Store a file. Pushing the same bytes under the same name twice makes one entry.

        Args:
            file: What was built.
            name: By default what the filename says.
            version: By default what the filename says, or the first digits of the digest.

        Raises:
            ArtifactError: It can't be read, or that name and version stand for other bytes.
        """

    def entries(self) -> list[Artifact]:
        """All artifacts, sorted by name and by when they were pushed.

        Raises:
            UnlistedError: This kind of repository can't say what it holds.
        """

    def find(self, wanted: str, root: Path) -> Artifact:
        """The artifact that a recipe wants.

        Args:
            wanted: ``name@version``, ``sha256:…`` (its first digits do), a folder, which is packed
                and pushed (see ``artifacts.folder``), or a glob of files, of
                which the one match is pushed. One whose name and version already stand for other
                bytes gets a local version (PEP 440) such as ``1.4.2+3f9a0c1b7d5e``: whoever
                builds again and again is not made to raise the version each time.
            root: What a relative glob is relative to.

        Raises:
            ArtifactError: There is none, or more than one; says what there is instead.
        """

    def fetch(self, artifact: Artifact) -> Path:
        """The artifact as a file of this machine, checked, under its own filename.

        Raises:
            ArtifactError: It is gone, or no longer the bytes that were pushed.
        """


def open_repository(url: str, root: Path) -> Repository:
    """The repository at a URL.

    Args:
        url: A folder, ``s3://bucket/prefix``, or where files can be put and got by plain HTTP.
        root: What a relative folder is relative to.

    Raises:
        ConfigurationError: The kind of repository is unknown, or the URL is invalid.
    """
    kind = url.partition("://")[0] if "://" in url else ""
    if kind == "s3":
        from pytest_ephemeral.artifacts.stored import StoredRepository
        from pytest_ephemeral.store.s3 import S3Store

        return StoredRepository(S3Store(url))
    if kind in {"http", "https"}:
        from pytest_ephemeral.artifacts.http import HttpRepository

        return HttpRepository(url)
    if not kind:
        from pytest_ephemeral.artifacts.directory import DirectoryRepository

        return DirectoryRepository(root / url)
    raise ConfigurationError(
        f"{url!r} is not a supported artifact repository: give a folder, s3://bucket/prefix, or "
        "https://host/path"
    )
