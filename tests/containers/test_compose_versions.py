"""Compose 2.30.0 and 2.30.1, which can't read a file from standard input."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from containers.project import Opened, compose, left, up
from pytest_ephemeral.providers.compose.command import Compose
from support import compose_versions, engine_images

#: It reads ``-`` as a file in the project's folder: https://github.com/docker/compose/issues/12248.
#: Of the faulty versions, only this one is available as a package.
FAULTY = "2.30.1"


@pytest.fixture
def command() -> Iterator[Compose]:
    """The faulty version of the compose command, and no other."""
    with compose_versions.with_plugin(compose_versions.fetch_compose(FAULTY)):
        yield Compose.find()


def test_compose_works_without_standard_input(
    command: Compose, opened: Opened, tmp_path: Path
) -> None:
    """An environment launches although this version can't read its file from standard input."""
    text = f"services: {{web: {{image: '{engine_images.busybox()}', command: httpd -f -p 8080}}}}\n"
    assert command.version() == FAULTY
    argv = [*command.argv, "-f", "-", "config"]
    refused = subprocess.run(argv, input=text, text=True, capture_output=True, check=False)
    assert "/-: no such file or directory" in refused.stderr
    (tmp_path / "compose.yaml").write_text(text)
    lifecycle = opened(compose("web"))
    environment = up(lifecycle, "odd")
    lifecycle.destroy(environment)
    assert left(environment.id) == []
