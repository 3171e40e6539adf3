"""A compose command that can't read its standard input, as 2.30.0 and 2.30.1 can't."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from containers.project import Opened, compose, left, up
from pytest_ephemeral.providers.compose.command import Compose
from support import compose_versions, engine_images

#: It takes ``-`` for a file of the project's folder: https://github.com/docker/compose/issues/12248.
#: Of 2.30, only this one is to be had as a package; it has the fault still.
FAULTY = "2.30.1"


@pytest.fixture
def command() -> Iterator[Compose]:
    """That version, and no other."""
    with compose_versions.with_plugin(compose_versions.fetch_compose(FAULTY)):
        yield Compose.find()


def test_compose_works_without_standard_input(
    command: Compose, opened: Opened, tmp_path: Path
) -> None:
    """What is to be brought up reaches it all the same."""
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
