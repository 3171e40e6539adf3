"""Two processes that remove one environment's folder at the same time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_ephemeral.providers.local import folder
from pytest_ephemeral.providers.local.folder import Folder
from pytest_ephemeral.providers.local.supervisor import files


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """The folder of an environment whose processes have ended."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path))
    made = Folder.of("staging-1")
    os.close(made.make({}))
    return made


def test_remove_tolerates_a_concurrent_sweep(
    place: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another launch may remove the folder as a leftover first, which is no error."""
    remove_tree = files.remove_tree

    def remove_after_a_sweep(path: str) -> None:
        monkeypatch.setattr(files, "remove_tree", remove_tree)
        folder._sweep(place.path.parent)
        remove_tree(path)

    monkeypatch.setattr(files, "remove_tree", remove_after_a_sweep)
    assert place.remove()
    assert not list(place.path.parent.iterdir())


def test_sweep_tolerates_a_concurrent_removal(
    place: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may remove a leftover first. The launch that sweeps continues."""
    (place.path.parent / f"{files.ASIDE}1").mkdir()

    def remove_first(leftover: Folder) -> bool:
        leftover.path.rmdir()
        return True

    monkeypatch.setattr(Folder, "is_abandoned", remove_first)
    other = Folder.of("staging-2")
    os.close(other.make({}))
    assert other.labels()
    assert not list(place.path.parent.glob(f"{files.ASIDE}*"))
