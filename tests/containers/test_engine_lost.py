"""An engine that goes away: clear errors, records that stay, and `reap` when it is back."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from containers.project import Opened, left, up
from pytest_ephemeral.environments import reaper
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.errors import DestroyError, EphemeralError
from pytest_ephemeral.providers import load


class Line:
    """A socket that leads to the engine, until it is cut."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cut = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.cut:
                    client.close()
                    continue
                engine = socket.socket(socket.AF_UNIX)
                engine.connect("/var/run/docker.sock")
                for one, other in ((client, engine), (engine, client)):
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError), one:
            while data := one.recv(1 << 16):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    if not Path("/var/run/docker.sock").exists():
        pytest.skip("the engine is not at /var/run/docker.sock")
    line = Line(tmp_path / "engine.sock")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{line.path}")
    yield line
    line.close()


def test_an_engine_that_goes_away(line: Line, opened: Opened) -> None:
    """Errors that say so, the record kept; when it is back, `reap` finishes."""
    lifecycle = opened()
    environment = up(lifecycle)
    assert environment.handle["engine"] == f"unix://{line.path}"
    line.cut = True

    status = lifecycle.status(environment)
    assert status.state == "gone"
    assert "does not answer" in status.detail
    with pytest.raises(EphemeralError, match="does not answer"):
        environment.logs()
    with pytest.raises(DestroyError, match="reap"):
        lifecycle.destroy(environment)
    assert [one.id for one in lifecycle.project.ledger.entries()] == [environment.id]
    assert left_behind(lifecycle) == [environment.id]

    line.cut = False
    lifecycle.extend(environment, environment.created_at)
    (reaped,) = reaper.reap(lifecycle.project, dry_run=False)
    assert (reaped.id, reaped.error) == (environment.id, "")
    assert left(environment.id) == []
    lifecycle.close()


def left_behind(lifecycle: Lifecycle) -> list[str]:
    """What reaping could not remove while the engine is away."""
    ids = []
    for environment in lifecycle.project.ledger.entries():
        with suppress(DestroyError):
            load(environment.provider).destroy(environment)
            continue
        ids.append(environment.id)
    return ids
