"""Records, labels and names are checked against the resource itself before its removal."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from containers.project import WEB, Opened, left, reopened, up
from pytest_ephemeral.environments import reaper
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.providers import load
from pytest_ephemeral.providers.abilities import SupportsClock
from pytest_ephemeral.providers.docker import containers, endpoint
from pytest_ephemeral.providers.docker.engine import Engine
from support import engine_images, engines, web
from support.processes import PROGRAM, run


@pytest.fixture
def theirs() -> Engine:
    """The engine, which the tests share with other users."""
    engine_images.require()
    return endpoint.find()


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in another process, which knows only the records."""
    asked = [*arguments, "--json", "--config", str(folder / "ephemeral.toml")]
    return run(PROGRAM, *asked, status=None, timeout=120)


def record_of(lifecycle: Lifecycle, folder: Path, id: str) -> Path:
    (file,) = (folder / ".ephemeral").rglob(f"{id}.json")
    return file


def forge(file: Path, **changes: str) -> None:
    """Change the handle in a record, as anyone with write access to the store can."""
    record = json.loads(file.read_text())
    record["environment"]["handle"].update(changes)
    file.write_text(json.dumps(record))


@pytest.mark.parametrize("how", ["down", "reap"])
def test_a_foreign_container_is_not_removed(
    theirs: Engine, opened: Opened, tmp_path: Path, how: str
) -> None:
    """A container without our labels stays, and so does the record; the exit status is 6."""
    body = {"Image": engine_images.busybox(), "Cmd": ["sleep", "1000"]}
    mine = theirs.call("POST", "/containers/create", body=body)["Id"]
    lifecycle = opened()
    environment = up(lifecycle)
    try:
        theirs.call("POST", f"/containers/{mine}/start")
        file = record_of(lifecycle, tmp_path, environment.id)
        forge(file, container=mine)
        if how == "reap":
            record = json.loads(file.read_text())
            record["environment"]["expires_at"] = "2020-01-01T00:00:00Z"
            file.write_text(json.dumps(record))
        done = command(tmp_path, how, *([environment.id] if how == "down" else []))
        assert done.returncode == 6, done.stdout + done.stderr
        assert "not this environment" in done.stdout
        assert containers.inspect(theirs, mine)["State"]["Running"]
        assert file.exists()
        assert left(environment.id)
    finally:
        theirs.call("DELETE", f"/containers/{mine}", query={"force": True})
        lifecycle.destroy(environment)
    assert left(environment.id) == []


def test_a_container_of_a_committed_image_is_not_removed(theirs: Engine, opened: Opened) -> None:
    """An image committed from an environment's container inherits the environment's labels."""
    lifecycle = opened()
    environment = up(lifecycle)
    container = environment.handle["container"]
    name = f"theirs-{WEB}"
    query = {"container": container, "repo": name, "tag": "copy"}
    theirs.call("POST", "/commit", query=query, body={})
    body = {"Image": f"{name}:copy", "Cmd": ["sleep", "1000"]}
    copy = theirs.call("POST", "/containers/create", query={"name": name}, body=body)["Id"]
    try:
        theirs.call("POST", f"/containers/{copy}/start")
        said = containers.inspect(theirs, copy)["Config"]["Labels"]
        assert said["pytest-ephemeral.id"] == environment.id
        assert environment.logs().count("theirs") == 0
        lifecycle.destroy(environment)
        reaper.reap(lifecycle.project, dry_run=False)
        assert containers.inspect(theirs, copy)["State"]["Running"]
        with pytest.raises(Exception, match="No such container"):
            containers.inspect(theirs, container)
    finally:
        theirs.call("DELETE", f"/containers/{copy}", query={"force": True})
        theirs.call("DELETE", f"/images/{name}:copy")


class _Nothing(web.Handler):
    """An engine that answers every request with no resources."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        said: Any = {"ID": "x", "Volumes": []} if "json" not in self.path else []
        self.answer(200, json.dumps(said).encode())


@pytest.fixture
def false_engine() -> Iterator[ThreadingHTTPServer]:
    """A fake engine, which a forged record names."""
    _Nothing.asked = []
    with web.serving(web.server_of(_Nothing)) as server:
        yield server


def test_an_engine_named_only_by_the_record_is_not_asked(
    theirs: Engine, opened: Opened, tmp_path: Path, false_engine: ThreadingHTTPServer
) -> None:
    """Its answers could claim that all is removed; the record stays, and the exit status is 6."""
    lifecycle = opened()
    environment = up(lifecycle)
    file = record_of(lifecycle, tmp_path, environment.id)
    honest = file.read_bytes()
    forge(file, engine=f"tcp://127.0.0.1:{false_engine.server_port}", **{"engine-id": "x"})
    for verb in ("show", "list", "logs", "down"):
        done = command(tmp_path, verb, *([] if verb == "list" else [environment.id]))
    assert done.returncode == 6, done.stdout
    assert "neither DOCKER_HOST nor a docker context" in done.stdout
    assert _Nothing.asked == []
    assert file.exists()
    assert left(environment.id)
    file.write_bytes(honest)
    lifecycle.destroy(environment)


def test_another_engine_at_the_same_address_is_unknown(
    theirs: Engine, opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the socket's path leads to another engine, the environment is unknown, not gone."""
    engines.require("dockerd")
    link = tmp_path / "docker.sock"
    link.symlink_to(theirs.address.url.removeprefix("unix://"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{link}")
    lifecycle = opened()
    environment = up(lifecycle)
    with engines.dockerd() as second:
        link.unlink()
        link.symlink_to(second.address.url.removeprefix("unix://"))
        done = command(tmp_path, "down", environment.id)
        assert done.returncode == 6, done.stdout
        assert "another container engine" in done.stdout
        listed = json.loads(command(tmp_path, "list").stdout)
        assert "gone" not in json.dumps(listed)
    assert record_of(lifecycle, tmp_path, environment.id).exists()
    link.unlink()
    link.symlink_to(theirs.address.url.removeprefix("unix://"))
    assert left(environment.id)
    assert command(tmp_path, "down", environment.id).returncode == 0
    assert left(environment.id) == []


def test_image_labels_do_not_name_log_files(opened: Opened) -> None:
    """An image may have Compose's labels with a path, which must not lead out of the log folder."""
    lifecycle = opened(dockerfile="FROM {base}\nLABEL com.docker.compose.service=../../../x\n")
    environment = up(lifecycle)
    files = load("docker").log_files(environment)
    assert list(files) == ["app"]
    lifecycle.destroy(environment)


def test_an_image_is_identified_by_its_digest(opened: Opened, tmp_path: Path) -> None:
    """The container runs the baked image, although the record's reference names another one."""
    lifecycle = opened()
    baked = lifecycle.image("web")
    other = endpoint.find().call("GET", f"/images/{engine_images.busybox()}/json")["Id"]
    (file,) = (
        file for file in (tmp_path / ".ephemeral").rglob("*.json") if "web" in file.read_text()
    )
    file.write_text(
        file.read_text().replace(f'"reference": "{baked.digest}"', f'"reference": "{other}"')
    )
    assert other in file.read_text()
    later = reopened(tmp_path)
    environment = up(later)
    found = containers.inspect(endpoint.find(), environment.handle["container"])
    assert found["Image"] == baked.digest
    later.destroy(environment)


def test_expiry_is_compared_with_the_clock_of_the_engine(theirs: Engine, opened: Opened) -> None:
    """With the engine's clock, a wrong clock on this machine destroys nothing."""
    lifecycle = opened()
    environment = up(lifecycle)
    provider = load("docker")
    assert isinstance(provider, SupportsClock)
    apart = abs(provider.clock(environment) - datetime.now(UTC))
    assert apart < timedelta(seconds=5)
    (owned,) = (one for one in provider.list_owned() if one.id == environment.id)
    assert owned.seen_at is not None
    lifecycle.destroy(environment)
