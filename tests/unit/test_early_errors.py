"""Errors that can be detected at once are reported at once: no command waits for them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_ephemeral import cli
from pytest_ephemeral.providers.docker import engine
from support.processes import PROGRAM

#: The longest wait for an error, in seconds. On an idle machine each of these takes one.
SOON = 10.0
#: Seconds in which the program starts and ends on an idle machine.
START = 0.5

CONFIGURATION = """
[images.shop]
provider = "local"
artifact = "dist/*.whl"
install = ["true"]

[images.scripted]
provider = "local"
install = "deploy/install.sh"

[images.container]
provider = "docker"
base = "base"
install = ["true"]

[images.ami]
provider = "ec2"
base = "ami-0123456789abcdef0"
install = ["true"]

[templates.staging]
image = "shop"
command = "serve"
port = 8080

[templates.scripted]
image = "scripted"
command = "serve"
port = 8080

[templates.keyed]
provider = "local"
command = "serve"
port = 8080
env = { KEY = "{env:SHOP_KEY}" }

[templates.container]
image = "container"
port = 8080

[templates.instance]
image = "ami"
command = "serve"
subnet = "subnet-0123456789abcdef0"
port = 8080

[promotion.production]
dns = "rfc2136"
server = "127.0.0.1:9"
zone = "example.com"
record = "shop.example.com"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project in which everything is missing."""
    (tmp_path / "ephemeral.toml").write_text(CONFIGURATION)
    (tmp_path / "test_it.py").write_text("def test_it(ephemeral_url): ...\n")
    return tmp_path


@pytest.fixture(scope="module")
def soon(tmp_path_factory: pytest.TempPathFactory) -> float:
    """``SOON``, multiplied by how much slower this machine is than an idle one."""
    began = time.monotonic()
    subprocess.run([PROGRAM, "list"], cwd=tmp_path_factory.mktemp("none"), check=False)
    return SOON * max(1.0, (time.monotonic() - began) / START)


def run(project: Path, *argv: str, **more: str) -> tuple[int, str, float]:
    """Run a program in the project; return its exit status, its output and its duration."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    variables = {
        **kept,
        "PYTEST_EPHEMERAL_STATE": str(project / "state"),
        "DOCKER_HOST": "tcp://127.0.0.1:9",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        **more,
    }
    began = time.monotonic()
    done = subprocess.run(
        argv, cwd=project, env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr, time.monotonic() - began


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("up stagin", "Did you mean 'staging'"),
        ("up staging", "no file matches"),
        ("up scripted", "images.scripted.install: the script"),
        ("up keyed", "SHOP_KEY"),
        ("up container", "container engine at tcp://127.0.0.1:9 .*does not answer"),
        ("bake container", "container engine at tcp://127.0.0.1:9 .*does not answer"),
        ("up instance", "AWS can't be reached"),
        ("bake ami", "AWS can't be reached"),
        ("down nothing", "no environment 'nothing'"),
        ("promote nothing --to production", "no environment 'nothing'"),
        ("promote nothing --to productio", "Did you mean 'production'"),
        ("--config nowhere.toml list", "nowhere.toml"),
        ("lst", "unknown command 'lst'"),
    ],
)
def test_commands_report_known_errors_quickly(
    project: Path, soon: float, command: str, said: str
) -> None:
    """A name, a file, a variable, an engine or an account is missing."""
    status, printed, seconds = run(project, str(PROGRAM), *command.split())
    assert status != 0
    assert re.search(said, printed, re.DOTALL), printed
    assert seconds < soon, printed


@pytest.mark.parametrize("template", ["stagin", "staging", "scripted", "keyed", "container"])
def test_pytest_reports_known_errors_quickly(project: Path, soon: float, template: str) -> None:
    """The error comes before all tests, or as the error of the test that needs it."""
    argv = ["-m", "pytest", "-p", "no:cacheprovider", "--ephemeral-env"]
    status, printed, seconds = run(
        project, sys.executable, *argv, f"--ephemeral-template={template}"
    )
    assert status != 0, printed
    assert seconds < soon, printed


def test_an_unresponsive_engine_is_reported(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It accepts connections but never responds, so a ping with a short timeout comes first."""
    assert engine._PING <= SOON
    monkeypatch.setattr(engine, "_PING", 0.2)
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(project / "state"))
    monkeypatch.chdir(project)
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("DOCKER_HOST", address)
        status = cli.main(["bake", "container"])
    said = capsys.readouterr().err
    assert (status, f"engine at {address} (from DOCKER_HOST) has not answered" in said) == (2, True)
