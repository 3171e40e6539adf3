"""Simulated machines for tests: each has a state folder and a prefix root."""

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

#: An install script: a program, and a file of a thousand lines.
INSTALL = [
    'mkdir -p "$PREFIX/bin" "$PREFIX/lib"',
    'printf "#!/bin/sh\\necho shop" > "$PREFIX/bin/shop"; chmod +x "$PREFIX/bin/shop"',
    'seq 1000 > "$PREFIX/lib/numbers"',
]
#: An install script whose output differs in every run.
RANDOM = [*INSTALL, 'od -An -N8 -tx1 /dev/urandom > "$PREFIX/lib/random"']


class Machine:
    """A machine: a folder with its state, its prefix root, a project and a store."""

    def __init__(self, folder: Path, *, store: str = "store") -> None:
        self.folder = folder
        self.messages: list[str] = []
        self.output: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["PYTEST_EPHEMERAL_STATE"] = str(folder / "state")
        os.environ["PYTEST_EPHEMERAL_PREFIX_ROOT"] = str(folder / "root")
        self.store = open_store(store, folder)
        artifacts = open_repository("artifacts", folder)
        self.images = Images(store=self.store, artifacts=artifacts, root=folder)

    def recipe(self, **keys: Any) -> LocalRecipe:
        """A recipe of the project."""
        return LocalRecipe(**{"name": "shop", "install": INSTALL, **keys})

    def obtain(self, mode: Any = "missing", **keys: Any) -> Image:
        """Obtain the recipe's image; ``messages`` and ``output`` are those of this call."""
        self.messages, self.output = [], []
        return self.images.obtain(
            self.recipe(**keys), mode=mode, say=self.messages.append, live=self.output.append
        )

    @property
    def baked(self) -> bool:
        """Whether the last ``obtain`` baked the image."""
        return any(line.startswith("baking ") for line in self.messages)

    @property
    def logs(self) -> str:
        """The logs of all bakes."""
        files = sorted((self.folder / "state" / "bakes").glob("*.log"))
        return "".join(file.read_text() for file in files)

    def list_installed(self) -> set[str]:
        """The names in the prefix root, without lock files."""
        root = self.folder / "root"
        names = {path.name for path in root.iterdir()} if root.is_dir() else set()
        return {name for name in names if not name.endswith(".lock")}

    def forget(self) -> None:
        """Remove state and installed trees, to become another machine with the same paths."""
        for name in ("root", "state"):
            tree.remove(self.folder / name)


@contextmanager
def machine_in(folder: Path) -> Iterator[Machine]:
    """Set the environment variables for a machine in a folder.

    At the end, its sealed trees are removed, which pytest can't do.
    """
    with patch.dict(os.environ):
        try:
            yield Machine(folder)
        finally:
            tree.remove(folder / "root")


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Machine]:
    """The machine that a test runs on."""
    with machine_in(tmp_path / "project") as machine:
        yield machine
