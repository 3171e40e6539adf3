"""Engines given by a context of the docker command or over SSH, and kinds of Podman."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from containers.project import Opened, reopened, up
from pytest_ephemeral.environments.removal import remove
from pytest_ephemeral.errors import UnavailableError
from pytest_ephemeral.providers.docker import endpoint
from pytest_ephemeral.providers.docker.engine import Engine
from support import engines, podman_engines, sshd, web


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty configuration of the docker command."""
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.delenv("DOCKER_CONTEXT", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


@pytest.fixture
def over_ssh(
    second_docker: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: None
) -> Iterator[str]:
    """The SSH address of the second Docker engine."""
    sshd.require()
    (tmp_path / "ssh").mkdir()
    with sshd.running(tmp_path / "ssh", monkeypatch) as port:
        yield f"ssh://root@127.0.0.1:{port}{second_docker.address.url.removeprefix('unix://')}"


def docker(*words: str) -> None:
    subprocess.run(["docker", *words], check=True, capture_output=True)


@pytest.mark.usefixtures("settings")
def test_the_current_docker_context_is_used(
    opened: Opened, second_docker: Engine, tmp_path: Path
) -> None:
    """The environment is removed from its own engine even after the context has changed."""
    opened(keep="always").image("web")
    docker("context", "create", "elsewhere", f"--docker=host={second_docker.address.url}")
    docker("context", "use", "elsewhere")
    lifecycle = reopened(tmp_path)
    environment = up(lifecycle)
    assert environment.handle["engine"] == second_docker.address.url
    (there,) = second_docker.call("GET", "/containers/json")
    assert environment.id in there["Names"][0]
    docker("context", "use", "default")
    assert endpoint.find().address != second_docker.address
    remove(lifecycle.project.ledger, environment)
    assert engines.list_resources(second_docker) == []


@pytest.fixture
def rootless() -> Iterator[Engine]:
    """A rootless Podman engine of another uid."""
    if why := podman_engines.rootless_unavailable():
        pytest.skip(f"without {why}")
    with podman_engines.start_rootless() as engine:
        assert Path(engine.address.url.removeprefix("unix://")).stat().st_uid != 0
        yield engine


def test_an_environment_runs_on_rootless_podman(
    opened: Opened, rootless: Engine, tmp_path: Path
) -> None:
    """The image is loaded there, an environment answers and runs commands, and nothing is left."""
    opened(keep="always").image("web")
    with engines.use(rootless):
        lifecycle = reopened(tmp_path)
        environment = up(lifecycle)
        assert web.get(environment.url) == "ok\n"
        assert environment.run(["echo", "there"]).stdout == "there\n"
        assert environment.id in str(rootless.call("GET", "/containers/json"))
        lifecycle.destroy(environment)
        assert engines.list_resources(rootless) == []


def test_destroy_does_not_wait_for_the_stop_timeout_of_podman(opened: Opened) -> None:
    """Podman would give an application that ignores its stop signal 10 s."""
    if why := podman_engines.newest_unavailable():
        pytest.skip(f"without {why}")
    with podman_engines.start(podman_engines.NEWEST) as engine, engines.use(engine):
        command = "trap '' TERM; httpd -f -p 8080 -h /www"
        environment = up(lifecycle := opened(f'command = "{command}"'))
        assert lifecycle.destroy(environment) < 5
        assert engines.list_resources(engine) == []


def test_an_environment_runs_on_an_engine_over_ssh(
    opened: Opened, over_ssh: str, tmp_path: Path
) -> None:
    """The image is loaded there, an environment answers and runs commands, and nothing is left."""
    opened(keep="always").image("web")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", over_ssh)
        engine = endpoint.find()
        lifecycle = reopened(tmp_path)
        environment = up(lifecycle)
        assert environment.handle["engine"] == over_ssh
        assert web.get(environment.url) == "ok\n"
        assert environment.run(["echo", "there"]).stdout == "there\n"
        lifecycle.destroy(environment)
        assert engines.list_resources(engine) == []


def test_a_failed_ssh_login_is_reported_in_one_line(
    over_ssh: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The line has the message of ssh, and the command that shows the whole of it."""
    (tmp_path / "ssh/key.pub").unlink()
    monkeypatch.setenv("DOCKER_HOST", over_ssh)
    with pytest.raises(UnavailableError) as caught:
        endpoint.find().ping()
    said = str(caught.value)
    assert "Permission denied (publickey" in said
    assert "ssh -p" in said
    assert "\n" not in said


def test_a_missing_engine_over_ssh_is_reported(
    over_ssh: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the message of the remote side."""
    monkeypatch.setenv("DOCKER_HOST", f"{over_ssh}-not")
    with pytest.raises(UnavailableError, match=r"connect: no such file|no such file or directory"):
        endpoint.find().ping()
