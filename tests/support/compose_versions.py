"""The two compose commands, each as if a machine had no other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pytest_ephemeral.providers.docker import endpoint

#: Where .ci/compose puts version 2, which Debian has only since its release 13.
FETCHED = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / (
    "pytest-ephemeral-tests/cli-plugins/docker-compose"
)


def v2() -> Path | None:
    """The plugin for ``docker compose``, if it is anywhere."""
    folders = endpoint.plugin_folders({"DOCKER_CONFIG": "/nowhere"})
    files = [*(folder / "docker-compose" for folder in folders), FETCHED]
    return next((file for file in files if file.exists()), None)


@contextmanager
def without_plugin() -> Iterator[Path]:
    """Whoever runs the tests has no plugins: docker-compose 1.29, unless the machine has others.

    Gives the folder of what the docker command is told.
    """
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_CONFIG", folder)
        yield Path(folder)


@contextmanager
def with_plugin() -> Iterator[None]:
    """Whoever runs the tests has the plugin."""
    with without_plugin() as folder:
        (folder / "cli-plugins").mkdir()
        (folder / "cli-plugins" / "docker-compose").symlink_to(v2() or "")
        yield
