"""A lost engine: errors name it, records stay, and `reap` cleans up when it is back."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from containers.project import WEB, Opened, compose, left, up
from pytest_ephemeral.environments import reaper
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.errors import DestroyError, EphemeralError
from pytest_ephemeral.providers import load
from pytest_ephemeral.providers.docker.engine import Address, Engine
from support import engine_images
from support.lacks import skip_without
from support.processes import PROGRAM, run
from support.waiting import until


class EngineConnection:
    """A Unix socket that forwards to the engine until it is cut."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cut = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Close the open connections, and refuse new ones."""
        self._cut = True
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._cut = False

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._cut:
                    client.close()
                    continue
                engine = socket.socket(socket.AF_UNIX)
                engine.connect("/var/run/docker.sock")
                self._open += [client, engine]
                for one, other in ((client, engine), (engine, client)):
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError), one:
            while data := one.recv(1 << 16):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineConnection]:
    if not Path("/var/run/docker.sock").exists():
        skip_without("/var/run/docker.sock", "the engine is elsewhere")
    line = EngineConnection(tmp_path / "engine.sock")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{line.path}")
    yield line
    line.close()


@pytest.mark.parametrize("provider", ["docker", "compose"])
def test_a_lost_engine_keeps_the_record_for_reap(
    line: EngineConnection, opened: Opened, tmp_path: Path, provider: str
) -> None:
    """Each command reports the lost engine; when it is back, `reap` removes the environment."""
    text = f"services: {{web: {{image: '{engine_images.busybox()}', volumes: [/data]}}}}\n"
    (tmp_path / "compose.yaml").write_text(text)
    lifecycle = opened(compose("web"))
    environment = up(lifecycle, WEB if provider == "docker" else "odd")
    assert environment.handle["engine"] == f"unix://{line.path}"
    line.cut()

    with pytest.raises(EphemeralError, match="does not answer"):
        lifecycle.status(environment)
    listed = run(PROGRAM, "list", folder=tmp_path).stdout
    assert re.search(rf"{environment.id} .* unknown ", listed), listed
    with pytest.raises(EphemeralError, match="does not answer"):
        environment.logs()
    with pytest.raises(DestroyError, match="reap"):
        lifecycle.destroy(environment)
    assert [one.id for one in lifecycle.project.ledger.entries()] == [environment.id]
    assert failed_removals(lifecycle) == [environment.id]

    line.mend()
    lifecycle.project.ledger.change(environment.id, expires_at=environment.created_at)
    reaped = reaper.reap(lifecycle.project, dry_run=False)
    assert (environment.id, "") in [(one.id, one.error) for one in reaped]
    assert left(environment.id) == []


def test_an_engine_lost_during_launch_keeps_the_record(
    line: EngineConnection, opened: Opened, tmp_path: Path
) -> None:
    """The engine is lost while the compose command waits for a healthy service."""
    text = (
        f"services: {{web: {{image: '{engine_images.busybox()}', depends_on: "
        f"{{db: {{condition: service_healthy}}}}}}, db: {{image: '{engine_images.busybox()}', "
        "healthcheck: {test: 'false', interval: 1s, retries: 99}}}\n"
    )
    (tmp_path / "compose.yaml").write_text(text)
    lifecycle = opened(compose("web"))
    template = lifecycle.project.config.template("odd")
    with ThreadPoolExecutor(1) as pool:
        launching = pool.submit(lifecycle.bring_up, template)
        engine = Engine(Address("unix:///var/run/docker.sock"))
        named = {"filters": {"label": [f"pytest-ephemeral.run={lifecycle.run}"]}}
        until(lambda: engine.call("GET", "/containers/json", query=named))
        line.cut()
        error = launching.exception(60)
    assert isinstance(error, EphemeralError)
    (environment,) = lifecycle.project.ledger.entries()
    assert "reap" in str(error.__notes__)
    line.mend()
    lifecycle.destroy(environment)
    assert left(environment.id) == []


def test_an_engine_lost_during_a_bake_is_reported(
    line: EngineConnection, opened: Opened, tmp_path: Path
) -> None:
    """The error points to `reap`, which removes the container; nothing is in the catalog."""
    name = f"away{WEB}"
    lifecycle = opened(
        f'[images.{name}]\nprovider = "docker"\nbase = "{engine_images.busybox()}"\n'
        'install = ["sleep 99"]\n'
    )
    argv = [PROGRAM, "bake", name]
    with subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as bake:
        until(lambda: "running" in states(f"bake-{name}-"))
        line.cut()
        _, said = bake.communicate(timeout=60)
    assert bake.returncode == 1
    assert "could not be baked" in said
    assert "does not answer" in said
    assert "Traceback" not in said
    assert "pytest-ephemeral reap" in said
    line.mend()
    reaped = reaper.reap(lifecycle.project, dry_run=False)
    assert [one.error for one in reaped if one.id.startswith(f"bake-{name}-")] == [""]
    assert left(f"bake-{name}-") == []
    assert lifecycle.project.images.catalog.entries() == []


def states(id: str) -> list[str]:
    """The states of an environment's containers, read from the engine directly."""
    engine = Engine(Address("unix:///var/run/docker.sock"))
    found = engine.call("GET", "/containers/json", query={"all": True})
    return [one["State"] for one in found if id in str(one)]


def failed_removals(lifecycle: Lifecycle) -> list[str]:
    """The environments that can't be removed while the engine is away."""
    ids = []
    for environment in lifecycle.project.ledger.entries():
        with suppress(DestroyError):
            load(environment.provider).destroy(environment)
            continue
        ids.append(environment.id)
    return ids


# -- no permission ---------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only as root can a test be somebody else")
@pytest.mark.parametrize("given", [True, False])
def test_missing_socket_permission_is_explained(
    monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    """The error is one line that says how a user gets the permission."""
    socket_file = Path("/var/run/docker.sock")
    if not socket_file.exists():
        skip_without("/var/run/docker.sock", "the engine is elsewhere")
    if socket_file.stat().st_mode & 0o006:
        pytest.skip("this file system's /var/run/docker.sock is everybody's")
    if given:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{socket_file}")
    else:
        monkeypatch.delenv("DOCKER_HOST", raising=False)
    said = as_unprivileged_user(lambda: load("docker").reach())  # type: ignore[attr-defined]
    assert "no permission" in said
    assert "sudo usermod -aG docker $USER" in said
    assert "\n" not in said


def as_unprivileged_user(act: Callable[[], None]) -> str:
    """The error message that a user without permissions gets."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        said = b"nothing"
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            act()
        except EphemeralError as error:
            said = str(error).encode()
        finally:
            os.write(writing, said)
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return text
