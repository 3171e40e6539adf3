"""``init``: what it detects in a folder, and the configuration that it writes."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from pytest_ephemeral import cli, config
from pytest_ephemeral.cli.detect import Container, Found, Script, look
from pytest_ephemeral.cli.starter import starter
from pytest_ephemeral.providers.docker import endpoint
from support.compose_versions import with_plugin


def test_init_writes_an_example_in_an_empty_folder(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example is valid, and stderr has the next command."""
    assert cli.main(["init"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{workplace / 'ephemeral.toml'}\n"
    assert "pytest-ephemeral up" in printed.err
    assert config.load(workplace / "ephemeral.toml").template(None).name == "staging"


def test_init_uses_a_console_script(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It takes the script with the project's name; the wheel's name is normalized."""
    (workplace / "pyproject.toml").write_text(
        '[project]\nname = "My.Shop"\nscripts = { tool = "a:b", "My.Shop" = "a:c" }\n'
    )
    assert cli.main(["init", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["script"] == "My.Shop"
    read = config.load(workplace / "ephemeral.toml")
    assert read.images["my-shop"].artifact == "dist/my_shop-*.whl"
    assert read.template(None).processes() == {"app": "$PREFIX/bin/My.Shop"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("files", "folder", "install", "command"),
    [
        (["app.py", "requirements/base.txt"], ".", '"$PREFIX/requirements/base.txt"', " app:app"),
        (["app.py", "deploy/requirements.txt"], ".", "deploy/requirements.txt", " app:app"),
        (["shop/__init__.py", "shop/requirements.txt"], ".", '"$PREFIX/shop/req', " shop:app"),
        (["backend/app.py", "backend/requirements.txt"], "backend", '"$PREFIX/req', " app:app"),
        (["app.py", "docs/requirements.txt"], ".", "install -q flask", " app:app"),
    ],
)  # fmt: skip
def test_init_finds_requirements_in_a_subfolder(
    workplace: Path, files: list[str], folder: str, install: str, command: str
) -> None:
    """A subfolder with requirements is the artifact if it is not a package."""
    for name in files:
        (workplace / name).parent.mkdir(exist_ok=True)
        (workplace / name).write_text("from flask import Flask\napp = Flask(__name__)\n")
    tree = look(workplace).source
    assert tree is not None
    assert tree.folder == folder
    assert install in tree.install[-1]
    assert command in tree.command


def test_init_uses_a_dockerfile(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Alone it is the default template; beside a console script, another one."""
    (workplace / "Dockerfile").write_text("FROM scratch\nEXPOSE 9000/tcp\n")
    assert cli.main(["init", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["container"] == "here"
    read = config.load(workplace / "ephemeral.toml")
    assert read.template(None).port == 9000
    assert read.template(None).provider == "docker"
    both = starter(Found(Script("shop", "shop"), Container("shop", 80)))
    assert set(tomllib.loads(both)["templates"]) == {"staging", "staging-docker"}


@pytest.mark.parametrize("text", ["", "services: []", "services: { a: }", "a: [b"])
def test_init_handles_empty_and_invalid_compose_files(workplace: Path, text: str) -> None:
    """An invalid file is refused, and one without services is ignored."""
    (workplace / "compose.yaml").write_text(text)
    assert cli.main(["init"]) == (2 if text == "a: [b" else 0)


@pytest.mark.parametrize("name", ["shop", "Shop_2", "x" * 80, "ß", '"\\', "---"])
def test_init_writes_a_valid_file_for_any_project_name(name: str, workplace: Path) -> None:
    """Names become TOML table names, globs and strings."""
    text = starter(Found(Script(name, name), Container(name, 80)))
    tomllib.loads(text)
    (workplace / "ephemeral.toml").write_text(text)
    assert config.load(workplace / "ephemeral.toml").images


def test_init_never_overwrites(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """This includes a file of ``--config`` and a table in a pyproject.toml."""
    other = tmp_path / "other.toml"
    other.write_text("mine")
    assert cli.main(["init", "--config", str(other)]) == 2
    assert other.read_text() == "mine"
    (workplace / "pyproject.toml").write_text("[tool.pytest-ephemeral]")
    assert cli.main(["init"]) == 2
    assert "pyproject.toml already exists" in capsys.readouterr().err
    assert not (workplace / "ephemeral.toml").exists()


# -- Compose files -------------------------------------------------------------------------------

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
def here(workplace: Path) -> Path:
    """The folder of a project that has a Compose file and a Dockerfile."""
    (workplace / "docker-compose.yml").write_text(COMPOSE)
    (workplace / "Dockerfile").write_text("FROM scratch\nEXPOSE 9000\n")
    return workplace


def test_init_uses_a_compose_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The URL is that of the first service with a port; each build is baked once."""
    assert cli.main(["init", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["service"] == "web"
    read = config.load(here / "ephemeral.toml")
    template: Any = read.template("staging-compose")
    assert (template.file, template.service, template.port) == ("docker-compose.yml", "web", 9000)
    assert {name: template.replaced[name] for name in ("web", "worker", "proxy")} == {
        "web": "here-container",
        "worker": "here-container",
        "proxy": "proxy-container",
    }
    proxy: Any = read.images["proxy-container"]
    assert (proxy.context, proxy.target, proxy.build_args) == ("proxy", "small", {"V": "1"})


def test_init_reads_a_compose_file_without_pyyaml(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compose 2 prints the file as JSON, and the result is the same."""
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


def test_init_explains_how_to_read_a_compose_file(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names what to install, also with docker-compose 1.29, which prints no JSON."""
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


def test_init_takes_dockerfile_settings_from_the_compose_file(here: Path) -> None:
    """These are stage, port and variables; similar service names get distinct images."""
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
