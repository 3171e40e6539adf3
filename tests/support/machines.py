"""Machines that share a store, for tests: a state folder and a prefix root each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from pytest_ephemeral.artifacts import open_repository
from pytest_ephemeral.images.pipeline import Images
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers.local import tree
from pytest_ephemeral.providers.local.tables import LocalRecipe
from pytest_ephemeral.store import open_store

#: What is installed: a program, and a thousand lines of something.
INSTALL = [
    'mkdir -p "$PREFIX/bin" "$PREFIX/lib"',
    'printf "#!/bin/sh\\necho shop" > "$PREFIX/bin/shop"; chmod +x "$PREFIX/bin/shop"',
    'seq 1000 > "$PREFIX/lib/numbers"',
]
#: Each bake of it gives other bytes.
RANDOM = [*INSTALL, 'od -An -N8 -tx1 /dev/urandom > "$PREFIX/lib/random"']


class Machine:
    """A machine: one folder that holds its state, its prefix root, a project and its store."""

    def __init__(self, folder: Path, *, store: str = "store") -> None:
        self.folder = folder
        self.said: list[str] = []
        self.shown: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["PYTEST_EPHEMERAL_STATE"] = str(folder / "state")
        os.environ["PYTEST_EPHEMERAL_PREFIX_ROOT"] = str(folder / "root")
        self.store = open_store(store, folder)
        artifacts = open_repository("artifacts", folder)
        self.images = Images(store=self.store, artifacts=artifacts, root=folder)

    def recipe(self, **keys: Any) -> LocalRecipe:
        """A recipe of this project."""
        return LocalRecipe(**{"name": "shop", "install": INSTALL, **keys})

    def obtain(self, mode: Any = "missing", **keys: Any) -> Image:
        """Its image; what is said meanwhile is in ``said`` and ``shown``, anew each time."""
        self.said, self.shown = [], []
        return self.images.obtain(
            self.recipe(**keys), mode=mode, say=self.said.append, live=self.shown.append
        )

    @property
    def baked(self) -> bool:
        """Whether the last image that was obtained was baked for it."""
        return any(line.startswith("baking ") for line in self.said)

    @property
    def logs(self) -> str:
        """All logs of its bakes."""
        files = sorted((self.folder / "state" / "bakes").glob("*.log"))
        return "".join(file.read_text() for file in files)

    def installed(self) -> set[str]:
        """What is in its prefix root, locks aside."""
        root = self.folder / "root"
        names = {path.name for path in root.iterdir()} if root.is_dir() else set()
        return {name for name in names if not name.endswith(".lock")}

    def forget(self) -> None:
        """Lose state and installed trees: what is left is another machine, with the same paths."""
        for name in ("root", "state"):
            tree.remove(self.folder / name)


@contextmanager
def machine_in(folder: Path) -> Iterator[Machine]:
    """A machine, for as long as the environment variables are its own.

    It removes its sealed trees in the end: pytest can't.
    """
    with patch.dict(os.environ):
        try:
            yield Machine(folder)
        finally:
            tree.remove(folder / "root")


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Machine]:
    """The machine that a test is on."""
    with machine_in(tmp_path / "project") as machine:
        yield machine
