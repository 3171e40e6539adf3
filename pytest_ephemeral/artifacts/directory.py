"""An artifact repository in a folder."""

from __future__ import annotations

from pathlib import Path

from pytest_ephemeral.artifacts.stored import StoredRepository
from pytest_ephemeral.store.directory import DirectoryStore


class DirectoryRepository(StoredRepository):
    """An artifact repository whose files are in a folder.

    Args:
        folder: The folder; it is created by the first push.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(DirectoryStore(folder))
