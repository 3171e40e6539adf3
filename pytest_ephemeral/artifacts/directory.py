"""An artifact repository in a folder."""

from __future__ import annotations

from pathlib import Path

from pytest_ephemeral import files
from pytest_ephemeral.artifacts.stored import StoredRepository, blob_path
from pytest_ephemeral.errors import ArtifactError
from pytest_ephemeral.models import Artifact
from pytest_ephemeral.store.directory import DirectoryStore


class DirectoryRepository(StoredRepository):
    """Artifacts as files of a folder, handed out where they are.

    Args:
        folder: Made when something is first pushed.
    """

    def __init__(self, folder: Path) -> None:
        self._store = DirectoryStore(folder)
        super().__init__(self._store)

    def fetch(self, artifact: Artifact) -> Path:
        """The artifact as a checked file."""
        file = self._store.file(blob_path(artifact))
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
