"""Containers when things go wrong: killed owners, an engine that goes away, what can't be right."""

from __future__ import annotations

import hashlib
import io
import json
import re
import secrets
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import engine_images
import msgspec
import pytest
import registry
from waiting import until

from pytest_ephemeral.environments import reaper
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.errors import (
    BakeError,
    DestroyError,
    EphemeralError,
    ImageChangedError,
    LaunchError,
)
from pytest_ephemeral.project import Project
from pytest_ephemeral.providers import load
from pytest_ephemeral.providers.docker import finding
from pytest_ephemeral.providers.docker.engine import TAR_TYPE

CONFIGURATION = """
[images.web]
provider = "docker"
context = "context"

[templates.{name}]
image = "web"
port = 8080
ready = {{ http = "/" }}
volumes = ["data:/data"]
{more}
"""

#: A name that no other worker's tests have on the engine that all share.
WEB = f"web{secrets.token_hex(3)}"

DOCKERFILE = "FROM {base}\nEXPOSE 8080 9000\n"


COMMAND = (sys.executable, "-c", "import pytest_ephemeral.cli as c; raise SystemExit(c.main())")


class Hooks:
    """Nobody listens."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda **arguments: None


Opened = Callable[..., Lifecycle]


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """Opens a project with containers; what it has baked is removed afterwards."""
    if why := engine_images.unavailable():
        pytest.skip(why)
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))
    (tmp_path / "context").mkdir()
    projects = []

    def open_(more: str = "", dockerfile: str = "") -> Lifecycle:
        base = engine_images.busybox()
        (tmp_path / "ephemeral.toml").write_text(CONFIGURATION.format(more=more, name=WEB))
        text = dockerfile or DOCKERFILE + f"LABEL test={tmp_path}\n"
        (tmp_path / "context" / "Dockerfile").write_text(text.format(base=base))
        projects.append(Project.open(tmp_path / "ephemeral.toml", tmp_path))
        return Lifecycle(projects[-1], Hooks(), run=f"faults-{secrets.token_hex(6)}")

    yield open_
    for project in projects:
        project.images.prune(0, set())


def left(id: str) -> list[str]:
    """All on the engine whose name or labels have the id."""
    engine = finding.find()
    everything = [
        *engine.call("GET", "/containers/json", query={"all": True}),
        *engine.call("GET", "/networks"),
        *(engine.call("GET", "/volumes")["Volumes"] or []),
    ]
    return [str(thing.get("Names") or thing["Name"]) for thing in everything if id in str(thing)]


def up(lifecycle: Lifecycle, template: str = WEB) -> Any:
    return lifecycle.bring_up(lifecycle.project.config.template(template)).environment


def refusal(lifecycle: Lifecycle, template: str = WEB) -> EphemeralError:
    """How bringing it up fails; nothing of it is left, on the engine or in the ledger."""
    with pytest.raises(EphemeralError) as caught:
        up(lifecycle, template)
    assert lifecycle.project.ledger.entries() == []
    assert left(lifecycle.run) == []
    lifecycle.close()
    return caught.value


# -- owners that are killed --------------------------------------------------------------------


def a_run(folder: Path) -> subprocess.Popen[bytes]:
    """A run of pytest whose one test has the environment, and does not end."""
    (folder / "test_waits.py").write_text(
        "import sys\ndef test_waits(ephemeral_env):\n"
        "    print(ephemeral_env.id, file=sys.__stderr__, flush=True)\n"
        "    import time; time.sleep(100)\n"
    )
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-s",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
    ]
    return subprocess.Popen(
        [*argv, "--ephemeral-env", "test_waits.py"], cwd=folder, stderr=subprocess.PIPE
    )


def test_nothing_outlives_a_killed_run(opened: Opened, tmp_path: Path) -> None:
    """Three seconds after kill -9, no container, no network, no volume, no record."""
    lifecycle = opened()
    lifecycle.image("web")
    with a_run(tmp_path) as run:
        assert run.stderr is not None
        id = run.stderr.readline().decode().strip()
        assert len(left(id)) == 3
        run.kill()
    until(lambda: not left(id), within=3)
    until(lambda: not lifecycle.project.ledger.entries(), within=1)


@pytest.mark.parametrize("seen", ["network", "container"])
def test_nothing_outlives_a_run_killed_while_it_launches(
    opened: Opened, tmp_path: Path, seen: str
) -> None:
    """Whatever the engine was just asked for is found by its labels."""
    lifecycle = opened()
    lifecycle.image("web")
    path = "/networks" if seen == "network" else "/containers/json?all=1"
    engine = finding.find()
    with a_run(tmp_path) as run:
        until(lambda: f"pytest-ephemeral-{WEB}-" in str(engine.call("GET", path)))
        run.kill()
    until(lambda: not lifecycle.project.ledger.entries(), within=3)
    assert left(f"pytest-ephemeral-{WEB}-") == []


def test_a_killed_bake_is_reaped(opened: Opened, tmp_path: Path) -> None:
    """Its container says whose it was: `reap` removes it, and nothing is in the catalog."""
    base = engine_images.busybox()
    more = f'[images.slow]\nprovider = "docker"\nbase = "{base}"\ninstall = ["sleep 100"]\n'
    lifecycle = opened(more)
    engine = finding.find()
    argv = [*COMMAND, "bake", "slow"]
    with subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.DEVNULL) as bake:
        until(lambda: engine.call("GET", "/containers/json") and left("bake-slow-"))
        assert reaper.reap(lifecycle.project, dry_run=True) == []
        bake.kill()
    (reaped,) = reaper.reap(lifecycle.project, dry_run=False)
    assert reaped.id.startswith("bake-slow-")
    assert reaped.error == ""
    assert left("bake-slow-") == []
    assert lifecycle.project.images.catalog.entries() == []


def test_a_killed_build_leaves_no_container(opened: Opened, tmp_path: Path) -> None:
    """The engine ends a build whose client has gone."""
    opened(dockerfile="FROM {base}\nRUN sleep 99.25\n")
    engine = finding.find()

    def building() -> bool:
        found = engine.call("GET", "/containers/json", query={"all": True})
        return "sleep 99.25" in str(found)

    argv = [*COMMAND, "bake", "web"]
    with subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.DEVNULL) as bake:
        until(building)
        bake.kill()
    until(lambda: not building())


# -- an engine that goes away ----------------------------------------------------------------------


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


def test_an_engine_that_goes_away(opened: Opened, line: Line) -> None:
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


# -- what can't be right ---------------------------------------------------------------------------


def test_a_dockerfile_that_fails(opened: Opened) -> None:
    """The step, what it said last, and where the rest is; no container stays."""
    lifecycle = opened(
        dockerfile="FROM {base}\nRUN echo one && echo no such package >&2 && exit 7\n"
    )
    error = refusal(lifecycle)
    assert isinstance(error, BakeError)
    assert "Step 2/" in str(error)
    assert "RUN echo one" in str(error)
    assert "    no such package" in str(error)
    assert "code: 7" in str(error)
    assert re.search(r"The whole log: .*\.log", str(error))
    assert lifecycle.project.images.catalog.entries() == []


def test_a_base_that_is_not_there(opened: Opened) -> None:
    """Neither here nor in a registry: it is named."""
    error = refusal(opened(dockerfile="FROM localhost:1/no/such:image\n"))
    assert "localhost:1/no/such" in str(error)


def test_a_verify_that_fails(opened: Opened) -> None:
    """The image is not in the catalog, and not on the engine."""
    base = engine_images.busybox()
    more = (
        f'[images.odd]\nprovider = "docker"\nbase = "{base}"\ninstall = ["true"]\n'
        'verify = ["echo it is not there; exit 4"]\n'
    )
    lifecycle = opened(more)
    with pytest.raises(BakeError, match=r"(?s)status 4.*it is not there"):
        lifecycle.image("odd")
    assert lifecycle.project.images.catalog.entries() == []
    images = finding.find().call("GET", "/images/json", query={"all": True})
    assert [one for one in images if "pytest-ephemeral.recipe': 'odd'" in str(one)] == []


def test_a_port_that_is_not_exposed(opened: Opened) -> None:
    """Said before anything is made, with those that are."""
    more = '[templates.odd]\nimage = "web"\nport = 7777\n'
    error = refusal(opened(more), "odd")
    assert "port 7777 (http) is not exposed" in str(error)
    assert "8080, 9000" in str(error)


def test_a_port_where_nobody_listens(opened: Opened) -> None:
    """The time-out says what does listen, though the engine accepts in anybody's name."""
    more = '[templates.odd]\nimage = "web"\nport = 9000\nready = { tcp = true, timeout = "1s" }\n'
    error = refusal(opened(more), "odd")
    assert "nobody listens behind it" in str(error)
    assert "nothing listens on port 9000 inside it; these do: 0.0.0.0:8080" in str(error)


def test_a_container_that_exits_at_once(opened: Opened) -> None:
    """At once, with its status and its log."""
    more = '[templates.odd]\nimage = "web"\nport = 8080\ncommand = "echo no database >&2; exit 3"\n'
    lifecycle = opened(more)
    lifecycle.image("web")
    started = time.monotonic()
    error = refusal(lifecycle, "odd")
    assert time.monotonic() - started < 10
    assert "app exited with status 3" in str(error)
    assert "    no database" in str(error)


def test_a_command_that_is_not_in_the_image(opened: Opened) -> None:
    """What it is, and no more of the engine's insides than needed."""
    more = '[templates.odd]\nimage = "web"\nport = 8080\ncommand = ["no-such-program"]\n'
    error = refusal(opened(more), "odd")
    assert isinstance(error, LaunchError)
    assert '"no-such-program": executable file not found' in str(error)
    assert "runc" not in str(error)


def test_a_network_that_is_not_there(opened: Opened) -> None:
    """Named, and the container that was made already is gone."""
    more = '[templates.odd]\nimage = "web"\nport = 8080\nnetwork = "no-such-network"\n'
    assert "no-such-network" in str(refusal(opened(more), "odd"))


def test_too_much_memory_is_told_as_such(opened: Opened) -> None:
    """An application that is killed for it did not simply exit."""
    eat = "tail /dev/zero"
    more = f'[templates.odd]\nimage = "web"\nport = 8080\nmemory = "16M"\ncommand = "{eat}"\n'
    assert "used more memory than it may" in str(refusal(opened(more), "odd"))


def test_an_image_for_another_architecture(opened: Opened, tmp_path: Path) -> None:
    """It is said that it is, and for which."""
    lifecycle = opened(dockerfile="FROM {base}\nCOPY program /program\n")
    program = tmp_path / "context" / "program"
    program.write_bytes(b"\x7fELF")
    program.chmod(0o755)
    foreign = made_foreign(lifecycle.image("web").reference)
    more = (
        f'[images.foreign]\nprovider = "docker"\nreference = "{foreign}"\n'
        '[templates.odd]\nimage = "foreign"\nport = 8080\ncommand = ["/program"]\n'
    )
    dockerfile = (tmp_path / "context" / "Dockerfile").read_text()
    assert "made for s390x" in str(refusal(opened(more, dockerfile), "odd"))


def made_foreign(reference: str) -> str:
    """The same image, said to be made for another architecture; its id."""
    engine = finding.find()
    with engine.stream("GET", f"/images/{reference}/get") as answer:
        saved = io.BytesIO(answer.read())
    changed = io.BytesIO()
    with tarfile.open(fileobj=saved) as source, tarfile.open(fileobj=changed, mode="w") as target:
        name = json.load(source.extractfile("manifest.json"))[0]["Config"]  # type: ignore[arg-type]
        for member in source:
            data = source.extractfile(member).read() if member.isfile() else b""  # type: ignore[union-attr]
            if member.name == name:
                data = data.replace(b'"amd64"', b'"s390x"').replace(b'"arm64"', b'"s390x"')
                id = hashlib.sha256(data).hexdigest()
        for member in source:
            data = source.extractfile(member).read() if member.isfile() else b""  # type: ignore[union-attr]
            if member.name == name:
                data = data.replace(b'"amd64"', b'"s390x"').replace(b'"arm64"', b'"s390x"')
                member.name = f"{id}.json"
            elif member.name == "manifest.json":
                data = data.replace(name.encode(), f"{id}.json".encode())
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))
    with engine.stream("POST", "/images/load", body=changed.getvalue(), headers=TAR_TYPE) as answer:
        answer.read()
    return f"sha256:{id}"


def compose(service: str) -> str:
    """A template of ``compose.yaml``."""
    return (
        '[templates.odd]\nprovider = "compose"\nfile = "compose.yaml"\n'
        f'service = "{service}"\nport = 8080\n'
    )


def test_a_service_that_is_not_in_the_file(opened: Opened, tmp_path: Path) -> None:
    """The closest one is named, before anything is made."""
    (tmp_path / "compose.yaml").write_text("services: {server: {image: whatever}}\n")
    more = compose(service="sever")
    error = refusal(opened(more), "odd")
    assert "no service 'sever'" in str(error)
    assert "Did you mean 'server'?" in str(error)


def test_a_service_that_crashes(opened: Opened, tmp_path: Path) -> None:
    """Which one, how, and what it said; the others are gone with it."""
    base = engine_images.busybox()
    (tmp_path / "compose.yaml").write_text(
        f"services:\n  web: {{image: '{base}'}}\n"
        f"  db: {{image: '{base}', command: sh -c 'echo disk broken; exit 9'}}\n"
    )
    more = compose(service="web") + 'ready = { http = "/nothing", timeout = "20s" }\n'
    error = refusal(opened(more), "odd")
    assert "db exited with status 9" in str(error)
    assert "db | disk broken" in str(error)


# -- another engine -------------------------------------------------------------------------------


def test_another_engine_gets_the_image_from_the_store(opened: Opened, tmp_path: Path) -> None:
    """Neither the image nor its base is there: it is the same image all the same, by its id."""
    engine = finding.find()
    base = f"localhost:1/{WEB}:base"
    query = {"repo": base.rpartition(":")[0], "tag": "base"}
    engine.call("POST", f"/images/{engine_images.busybox()}/tag", query=query)
    project = opened(dockerfile=f"FROM {base}\nLABEL test={tmp_path}\n").project
    recipe = project.config.recipe("web")
    baked = project.images.obtain(recipe, mode="missing", say=print)
    for name in (base, f"pytest-ephemeral/web:{baked.key[7:19]}"):
        engine.call("DELETE", f"/images/{name}")
    with pytest.raises(EphemeralError):
        engine.call("GET", f"/images/{baked.reference}/json")

    brought = project.images.obtain(recipe, mode="never", say=print)

    assert brought == baked
    found = engine.call("GET", f"/images/{baked.reference}/json")
    assert found["Id"] == baked.digest
    assert found["Config"]["Labels"]["pytest-ephemeral.key"] == baked.key


def test_an_image_is_packed_the_same_every_time(opened: Opened, tmp_path: Path) -> None:
    """So that the store has it once."""
    image = opened().image("web")
    for name in ("one", "two"):
        load("docker").pack(image, tmp_path / name)  # type: ignore[attr-defined]
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_an_archive_that_is_another_image(opened: Opened, tmp_path: Path) -> None:
    """It is refused by the id that comes out of it."""
    image = opened().image("web")
    load("docker").pack(image, tmp_path / "archive")  # type: ignore[attr-defined]
    other = msgspec.structs.replace(image, reference="sha256:" + "0" * 64)
    with pytest.raises(ImageChangedError, match="archive of the image"):
        load("docker").unpack(other, tmp_path / "archive")  # type: ignore[attr-defined]


def test_pruning_removes_what_was_baked_and_only_that(opened: Opened) -> None:
    """Not while an environment runs from it; never the base."""
    lifecycle = opened()
    environment = up(lifecycle)
    images = lifecycle.project.images
    assert images.prune(0, set()) == []
    lifecycle.destroy(environment)
    (removed,) = images.prune(0, set())
    engine = finding.find()
    with pytest.raises(EphemeralError):
        engine.call("GET", f"/images/{removed.reference}/json")
    assert engine.call("GET", f"/images/{engine_images.busybox()}/json")
    lifecycle.close()


def test_another_engine_pulls_from_the_registry(opened: Opened) -> None:
    """By the digest that was pushed, where the store has lost it; the tag there is not needed."""
    base = engine_images.busybox()
    engine = finding.find()
    with registry.running() as pushed_to:
        repository = f"127.0.0.1:{pushed_to.server_port}/team/{WEB}"
        more = (
            f'[images.shared]\nprovider = "docker"\nbase = "{base}"\n'
            f'install = ["echo {WEB} > /it"]\n'
            f'registry = "{repository}"\nverify = ["grep {WEB} /it"]\n'
        )
        project = opened(more).project
        recipe = project.config.recipe("shared")
        baked = project.images.obtain(recipe, mode="missing", say=print)
        assert baked.handle["pull"].startswith(f"{repository}@sha256:")
        engine.call("DELETE", f"/images/pytest-ephemeral/shared:{baked.key[7:19]}")
        project.store.delete(f"images/{baked.archive[7:]}")
        with pytest.raises(EphemeralError):
            engine.call("GET", f"/images/{baked.reference}/json")

        assert project.images.obtain(recipe, mode="never", say=print) == baked

        assert engine.call("GET", f"/images/{baked.reference}/json")["Id"] == baked.digest
        engine.call("DELETE", f"/images/{baked.handle['pull']}")
        taken(opened, repository, pushed_to)


def taken(opened: Opened, repository: str, pushed_to: registry.Registry) -> None:
    """A reference by a tag is pulled once, and pinned by what the tag pointed to."""
    tag = next(name for name in pushed_to.manifests if not name.startswith("sha256:"))
    more = f'[images.taken]\nprovider = "docker"\nreference = "{repository}:{tag}"\n'
    project = opened(more).project
    image = project.images.obtain(project.config.recipe("taken"), mode="missing", say=print)
    digest = hashlib.sha256(pushed_to.manifests[tag][1]).hexdigest()
    assert image.inputs["content"] == f"sha256:{digest}"
    assert image.handle["pull"] == f"{repository}@sha256:{digest}"
    finding.find().call("DELETE", f"/images/{image.reference}", query={"force": True})
    again = project.images.obtain(project.config.recipe("taken"), mode="never", say=print)
    assert again == image
    finding.find().call("DELETE", f"/images/{image.reference}", query={"force": True})
