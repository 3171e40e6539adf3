"""An artifact repository in a folder."""

from __future__ import annotations

from pathlib import Path

from pytest_ephemeral.artifacts.stored import StoredRepository
from pytest_ephemeral.store.directory import DirectoryStore


class DirectoryRepository(StoredRepository):
    """Artifacts as files of a folder.

    Args:
        folder: Made when something is first pushed.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(DirectoryStore(folder))
