"""Fixtures for tests of containers."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from containers.project import CONFIGURATION, DOCKERFILE, WEB, Opened
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.environments.removal import remove
from pytest_ephemeral.project import Project
from pytest_ephemeral.providers.docker import bases, endpoint, image_store
from pytest_ephemeral.providers.docker.engine import Engine
from support import compose_versions, engine_images, engines, podman_engines
from support.hooks import SilentHooks


@pytest.fixture(scope="module")
def one_podman() -> Iterator[Engine]:
    """A Podman engine that all tests of a module share."""
    engines.require("podman")
    with podman_engines.start() as engine:
        yield engine


@pytest.fixture
def podman(one_podman: Engine) -> Iterator[Engine]:
    """The shared Podman engine, without images."""
    yield one_podman
    engines.forget_images(one_podman)


@pytest.fixture(scope="module")
def second_docker() -> Iterator[Engine]:
    """A Docker engine in addition to the machine's own."""
    engines.require("dockerd")
    with engines.dockerd() as engine:
        yield engine


@pytest.fixture(params=["v1", "v2"])
def compose_command(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each version of the compose command."""
    engine_images.require()
    v2 = request.param == "v2"
    with compose_versions.with_plugin() if v2 else compose_versions.without_plugin():
        yield


class SharedImage:
    """The image that tests without a Dockerfile of their own share in this process.

    Attributes:
        address: The address of its engine; on other engines each test has an image of its own.
        label: A label value that no other process's image has.
        keys: Its keys, which the clean-up after each test keeps.
    """

    def __init__(self) -> None:
        self.address = endpoint.find().address
        self.label = secrets.token_hex(6)
        self.keys: set[str] = set()


@pytest.fixture(scope="session")
def shared_image() -> Iterator[SharedImage]:
    """The shared image, whose tags are removed at the end of the session."""
    engine_images.require()
    shared = SharedImage()
    yield shared
    for key in shared.keys:
        bases.untag(Engine(shared.address), image_store.name_of("web", key))


@pytest.fixture
def opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_image: SharedImage
) -> Iterator[Opened]:
    """A function that opens a project with containers.

    Its images are removed after the test, except the shared one, which later tests use.
    """
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))
    (tmp_path / "context").mkdir()
    projects = []

    def open_(more: str = "", dockerfile: str = "", keep: str = "never") -> Lifecycle:
        base = engine_images.busybox()
        is_shared = not dockerfile and endpoint.find().address == shared_image.address
        text = CONFIGURATION.format(more=more, name=WEB, keep=keep)
        (tmp_path / "ephemeral.toml").write_text(text)
        label = shared_image.label if is_shared else tmp_path
        text = (dockerfile or DOCKERFILE) + f"\nLABEL test={label}\n"
        (tmp_path / "context" / "Dockerfile").write_text(text.format(base=base))
        projects.append(project := Project.open(tmp_path / "ephemeral.toml", tmp_path))
        if is_shared:
            shared_image.keys.add(project.images.key(project.config.recipe("web")))
        return Lifecycle(project, SilentHooks(), run=f"faults-{secrets.token_hex(6)}")

    yield open_
    for project in projects:
        for environment in project.ledger.entries():  # left by a failed test
            remove(project.ledger, environment)
        project.images.prune(0, shared_image.keys)
