"""Fixtures of several modules: a simulated machine, a folder for commands, a key pair."""

from pathlib import Path

import pytest

from support.keys import make_keys
from support.machines import here

__all__ = ["here"]


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The files of a private key and its public key."""
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, with its own state folder and prefix root."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PYTEST_EPHEMERAL_PREFIX_ROOT", str(tmp_path / "prefixes"))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
