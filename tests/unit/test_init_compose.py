"""``init`` and a Compose file where PyYAML is not installed."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from pytest_ephemeral import cli
from pytest_ephemeral.providers.docker import endpoint
from support.compose_versions import with_plugin

COMPOSE = """
services:
  db: { image: "postgres:16" }
  web:
    build: .
    ports: ["127.0.0.1:80:9000/tcp"]
  worker: { build: { context: ./, dockerfile: Dockerfile } }
  proxy: { build: { context: proxy, target: small, args: ["V=1"] }, expose: [8000] }
  odd: { build: { context: odd, args: [HOME, "A=${B}", "C="], shm_size: 64m, ssh: [default] } }
  mapped: { build: { context: mapped, args: { HOME: , C: "" } } }
  far: { build: "https://example.com/far.git#main:app" }
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder, stood in, without a configuration."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "docker-compose.yml").write_text(COMPOSE)
    (folder / "Dockerfile").write_text("FROM scratch\nEXPOSE 9000\n")
    monkeypatch.chdir(folder)
    return folder


def test_init_reads_a_compose_file_without_pyyaml(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compose 2 says what it means; what init writes is the same."""
    assert cli.main(["init"]) == 0
    text = (here / "ephemeral.toml").read_text()
    assert (
        "# left to you, as it can't be taken from the file: args.HOME, args.A, shm_size, ssh"
        in text
    )
    by_yaml = tomllib.loads(text)
    assert by_yaml["images"]["odd-container"]["build-args"] == {"C": ""}
    assert by_yaml["images"]["mapped-container"]["build-args"] == {"C": ""}
    assert by_yaml["images"]["far-container"]["context"] == "https://example.com/far.git#main:app"
    (here / "ephemeral.toml").unlink()
    monkeypatch.setitem(sys.modules, "yaml", None)
    with with_plugin():
        assert cli.main(["init"]) == 0, capsys.readouterr().err
    assert tomllib.loads((here / "ephemeral.toml").read_text()) == by_yaml


def test_init_and_a_compose_file_that_nothing_here_reads(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what would read it; also where docker-compose is 1.29, which prints no JSON."""
    monkeypatch.setitem(sys.modules, "yaml", None)
    monkeypatch.setenv("DOCKER_CONFIG", str(here))
    old = here / "docker-compose"
    old.write_text("#!/bin/sh\necho 'no such option: --format' >&2\nexit 1\n")
    old.chmod(0o755)
    for path in (str(here), "/nowhere"):
        monkeypatch.setenv("PATH", path)
        monkeypatch.setattr(endpoint, "plugin_folders", lambda _: [])
        assert cli.main(["init"]) == 2
        assert "pip install 'pytest-ephemeral[docker]'" in capsys.readouterr().err


def test_init_knows_a_dockerfile_as_the_compose_file_uses_it(here: Path) -> None:
    """Its stage, its port and its variables; images of services called alike are two."""
    (here / "Dockerfile").write_text("FROM scratch AS builder\nFROM builder AS tools\n")
    (here / "docker-compose.yml").write_text(
        "services:\n"
        "  api:\n"
        "    build: { context: ., target: builder }\n"
        "    environment: { PORT: 8000, DEBUG: true, KEY: '${KEY}', HOME: }\n"
        "    ports: ['8000:8000']\n"
        "  a.b: { build: first }\n"
        "  a-b: { build: second }\n"
        "  here: { build: { context: ., dockerfile: Other } }\n"
    )
    assert cli.main(["init"]) == 0
    read = tomllib.loads((here / "ephemeral.toml").read_text())
    assert read["default-template"] == "staging-compose"
    assert read["images"]["here-container"]["target"] == "builder"
    assert read["templates"]["staging"] == {
        "image": "here-container",
        "port": 8000,
        "env": {"PORT": "8000", "DEBUG": "true"},
    }
    assert read["templates"]["staging-compose"]["images"] == {
        "api": "here-container",
        "a.b": "a-b-container",
        "a-b": "a-b-container-2",
        "here": "here-container-2",
    }
