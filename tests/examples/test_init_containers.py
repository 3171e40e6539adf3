"""`init` in a project with a Dockerfile or a Compose file: tests pass without edits."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pytest_ephemeral import labels
from pytest_ephemeral.providers.docker import endpoint
from support import compose_versions, engine_images, processes
from support.processes import PROGRAM

DOCKERFILE = "FROM {base}\nEXPOSE 8080\nCOPY index.html /www/\n"

COMPOSE = """
services:
  db:
    image: {base}
    command: ["sleep", "1000"]
  web:
    build: .
    ports: ["18080:8080"]
    depends_on: [db]
"""

TEST = """
def test_it_answers(ephemeral_http):
    assert ephemeral_http.get("/index.html").text.strip() == "{unique}"
"""

Version = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A project with a Dockerfile, its content and a test; the baked images are removed."""
    base = engine_images.busybox()
    folder = tmp_path / "shop"
    folder.mkdir()
    unique = os.urandom(4).hex()
    (folder / "index.html").write_text(unique)
    (folder / "Dockerfile").write_text(DOCKERFILE.format(base=base))
    (folder / "test_shop.py").write_text(TEST.format(unique=unique))
    yield folder
    run(folder, PROGRAM, "images", "prune", "--keep", "0")


def run(folder: Path, *argv: str | Path) -> str:
    """The output of a command in the project's folder, with a state folder of its own."""
    environ = {**os.environ, "PYTEST_EPHEMERAL_STATE": str(folder.parent / "state")}
    return processes.run(*argv, folder=folder, environ=environ).stdout


def run_tests(folder: Path) -> str:
    """Run `init` and pytest; no container is left on the engine."""
    run(folder, PROGRAM, "init")
    pytest_ = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
    said = run(folder, *pytest_, "--ephemeral-env")
    assert "1 passed" in said
    id = said.partition(" is up at ")[0].rpartition(" ")[2]
    assert f"{id}  (" in said
    wanted = {"all": 1, "filters": json.dumps({"label": [f"{labels.ID}={id}"]})}
    assert not endpoint.find().call("GET", "/containers/json", query=wanted)
    return said


def test_init_makes_a_dockerfile_project_testable(project: Path) -> None:
    """The image is baked, and the environment launches with the exposed port."""
    assert "destroyed" in run_tests(project)


@pytest.mark.parametrize(
    "version",
    [compose_versions.without_plugin, compose_versions.with_plugin],
    ids=["1.29", "2"],
)
def test_init_makes_a_compose_project_testable(project: Path, version: Version) -> None:
    """Built services are baked; the URL leads to the service that publishes a port."""
    base = engine_images.busybox()
    (project / "compose.yaml").write_text(COMPOSE.format(base=base))
    with version():
        said = run_tests(project)
    assert "destroyed" in said or "cleanup continues in the background" in said  # of its network
