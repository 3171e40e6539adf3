"""The artifact repository: built, versioned files, named by their SHA-256."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.models import Artifact
from pytest_ephemeral.store import open_store


class Repository(Protocol):
    """An artifact repository. All methods raise ``StoreError`` if it can't be reached.

    Attributes:
        url: Its URL, absolute: ``open_repository`` opens the same repository from any folder.
    """

    url: str

    def push(self, file: Path, *, name: str | None = None, version: str | None = None) -> Artifact:
        """Store a file. Storing the same bytes under the same name and version again has no effect.

        Args:
            file: The built file.
            name: The artifact's name; by default taken from the file name.
            version: Its version; by default taken from the file name, or else the first twelve
                digits of the digest.

        Raises:
            ArtifactError: The file can't be read, the name or version is not valid, or that name
                and version are already used for other bytes.
        """

    def entries(self) -> list[Artifact]:
        """All artifacts, sorted by name, then by the time at which they were pushed.

        Raises:
            UnlistedError: This kind of repository can't list its content.
        """

    def find(self, wanted: str, root: Path) -> Artifact:
        """The artifact that a recipe wants.

        Args:
            wanted: ``name@version``; a digest ``sha256:…``, or its first digits; a folder, which
                is packed and pushed (see ``artifacts.folder``); or a glob that matches one file,
                which is pushed. If its name and version are already used for other bytes, it gets
                a local version (PEP 440) such as ``1.4.2+3f9a0c1b7d5e``, so that a new build does
                not require a new version.
            root: The folder that relative paths and globs are relative to.

        Raises:
            ArtifactError: No artifact matches, or several do. The message lists what was found.
        """

    def fetch(self, artifact: Artifact) -> Path:
        """Get an artifact as a local file with its own file name, its digest verified.

        Raises:
            ArtifactError: Its content is missing, or has changed since it was pushed.
        """


def open_repository(url: str, root: Path) -> Repository:
    """Open the repository at a URL.

    Args:
        url: A folder, ``s3://bucket/prefix``, or the URL of an HTTP server that accepts PUT.
        root: The folder that a relative folder is relative to.

    Raises:
        ConfigurationError: The kind of repository is unknown, or the URL is invalid.
    """
    kind = url.partition("://")[0] if "://" in url else ""
    if kind in {"http", "https"}:
        from pytest_ephemeral.artifacts.http import HttpRepository

        return HttpRepository(url)
    if kind in {"", "s3"}:
        from pytest_ephemeral.artifacts.repository import StoredRepository

        return StoredRepository(open_store(url, root))
    raise ConfigurationError(
        f"{url!r} is not a supported artifact repository: give a folder, s3://bucket/prefix, or "
        "https://host/path"
    )
