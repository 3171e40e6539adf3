"""Fixtures for tests of containers."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from containers.project import CONFIGURATION, DOCKERFILE, WEB, Opened
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.environments.removal import remove
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.project import Project
from pytest_ephemeral.providers.docker import bases, endpoint, image_store
from pytest_ephemeral.providers.docker.engine import Engine
from support import compose_versions, engine_images, engines, podman_engines
from support.hooks import SilentHooks


@pytest.fixture(scope="module")
def one_podman() -> Iterator[Engine]:
    """A Podman for all tests of a module."""
    engines.require("podman")
    with podman_engines.start() as engine:
        yield engine


@pytest.fixture
def podman(one_podman: Engine) -> Iterator[Engine]:
    """A Podman without images."""
    yield one_podman
    engines.forget_images(one_podman)


@pytest.fixture(scope="module")
def second_docker() -> Iterator[Engine]:
    """A Docker besides the machine's own."""
    engines.require("dockerd")
    with engines.dockerd() as engine:
        yield engine


@pytest.fixture(params=["v1", "v2"])
def compose_command(request: pytest.FixtureRequest) -> Iterator[None]:
    """Either version of the compose command."""
    engine_images.require()
    v2 = request.param == "v2"
    with compose_versions.with_plugin() if v2 else compose_versions.without_plugin():
        yield


@pytest.fixture(scope="session")
def shared_keys() -> Iterator[set[str]]:
    """The keys of the image that tests without a Dockerfile of their own share in this process."""
    keys: set[str] = set()
    yield keys
    for key in keys:
        bases.untag(endpoint.find(), image_store.name_of("web", key))


@pytest.fixture
def opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_keys: set[str]
) -> Iterator[Opened]:
    """Opens a project with containers.

    Its images are removed afterwards, except the one that later tests find on the engine.
    """
    engine_images.require()
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))
    (tmp_path / "context").mkdir()
    projects = []

    def open_(more: str = "", dockerfile: str = "", keep: str = "never") -> Lifecycle:
        base = engine_images.busybox()
        text = CONFIGURATION.format(more=more, name=WEB, keep=keep)
        (tmp_path / "ephemeral.toml").write_text(text)
        text = (dockerfile or DOCKERFILE) + f"\nLABEL test={tmp_path if dockerfile else WEB}\n"
        (tmp_path / "context" / "Dockerfile").write_text(text.format(base=base))
        projects.append(Project.open(tmp_path / "ephemeral.toml", tmp_path))
        if not dockerfile:
            with contextlib.suppress(EphemeralError):
                shared_keys.add(projects[-1].images.key(projects[-1].config.recipe("web")))
        return Lifecycle(projects[-1], SilentHooks(), run=f"faults-{secrets.token_hex(6)}")

    yield open_
    for project in projects:
        for environment in project.ledger.entries():  # of a test that has failed
            remove(project.ledger, environment)
        project.images.prune(0, shared_keys)
