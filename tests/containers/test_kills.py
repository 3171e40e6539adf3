"""Three seconds after an owner is killed, nothing of its environments and bakes is left."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from containers.project import WEB, Opened, a_run, left
from pytest_ephemeral.broker.queue import GRACE
from pytest_ephemeral.environments import reaper
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.providers.docker import containers, endpoint
from pytest_ephemeral.providers.docker.engine import Engine
from pytest_ephemeral.providers.docker.resources import IN_FLIGHT
from support import compose_versions, engine_images, engines
from support.processes import PROGRAM
from support.waiting import until, until_gone

#: Seconds after which nothing may be left.
SOON = 3.0

STACK = """
services:
  web: {{build: ., volumes: ["data:/data", /anonymous], depends_on: [db]}}
  db: {{image: "{base}", networks: [back], stop_signal: SIGUSR1, restart: always}}
networks: {{back: }}
volumes: {{data: }}
"""
TEMPLATE = f"""
[templates.{WEB}s]
provider = "compose"
file = "compose.yaml"
service = "web"
port = 8080
images = {{{{ web = "web" }}}}
ready = {{{{ http = "/" }}}}
"""

#: By name: the template, and the compose command that the machine has.
WAYS: dict[str, tuple[str, Callable[[], AbstractContextManager[object]]]] = {
    "docker": (WEB, nullcontext),
    "compose": (f"{WEB}s", compose_versions.without_plugin),
    "compose-v2": (f"{WEB}s", compose_versions.with_plugin),
}


class Killable:
    """A project with one template that launches containers.

    Attributes:
        template: The template's name, which no other test uses.
        folder: The project's folder.
        lifecycle: The lifecycle of the opened project.
    """

    def __init__(self, template: str, folder: Path, lifecycle: Lifecycle) -> None:
        self.template = template
        self.folder = folder
        self.lifecycle = lifecycle

    def run(self, *arguments: str, seconds: int = 100) -> subprocess.Popen[bytes]:
        return a_run(self.folder, *arguments, template=self.template, seconds=seconds)

    def id(self) -> str:
        """The environment's ID, once the test has written it."""
        return until((self.folder / "id").read_text, within=60)

    def left(self) -> list[str]:
        """The resources of its environments on the engine."""
        return left(f"pytest-ephemeral-{self.template}-")

    def gone_soon(self) -> None:
        """Wait until nothing is left on the engine or in the ledger."""
        until_gone(self.left, within=SOON)
        until_gone(self.lifecycle.project.ledger.entries, within=SOON)
        assert self.left() == []


@pytest.fixture(params=list(WAYS))
def killable(request: pytest.FixtureRequest, opened: Opened, tmp_path: Path) -> Iterator[Killable]:
    """A project of each kind, with its image baked."""
    template, platform = WAYS[request.param]
    (tmp_path / "compose.yaml").write_text(STACK.format(base=engine_images.busybox()))
    with platform():
        lifecycle = opened(TEMPLATE.format())
        lifecycle.image("web")
        yield Killable(template, tmp_path, lifecycle)


@pytest.mark.parametrize("arguments", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_a_killed_run_leaves_nothing(killable: Killable, arguments: list[str]) -> None:
    """No container, network, volume or record is left."""
    with killable.run(*arguments) as run:
        killable.id()
        assert len(killable.left()) >= 3
        run.kill()
        killable.gone_soon()


@pytest.mark.parametrize("kind", ["networks", "volumes", "containers/json"])
def test_a_run_killed_during_launch_leaves_nothing(killable: Killable, kind: str) -> None:
    """The run is killed as soon as the engine has the first resource of a kind."""
    engine, name = endpoint.find(), f"pytest-ephemeral-{killable.template}-"
    with killable.run() as run:
        until(lambda: name in str(engine.call("GET", f"/{kind}", query={"all": True})), within=60)
        run.kill()
        killable.gone_soon()


def test_a_waiting_compose_command_is_killed_with_the_run(opened: Opened, tmp_path: Path) -> None:
    """Otherwise it would wait a minute for a service's health check."""
    check = "healthcheck: {test: 'false', interval: 60s}"
    (tmp_path / "compose.yaml").write_text(
        "services:\n  web: {build: ., depends_on: {db: {condition: service_healthy}}}\n"
        f"  db: {{image: '{engine_images.busybox()}', command: sleep 99, {check}}}\n"
    )
    with compose_versions.with_plugin():
        lifecycle = opened(TEMPLATE.format())
        lifecycle.image("web")
        killable = Killable(f"{WEB}s", tmp_path, lifecycle)
        with killable.run() as run:
            until(lambda: any("db" in one for one in killable.left()), within=60)
            run.kill()
            until_gone(killable.left, within=0.75 * GRACE)


def test_a_run_killed_during_teardown_leaves_nothing(killable: Killable) -> None:
    """A removal that was interrupted is finished."""
    with killable.run(seconds=0) as run:
        killable.id()
        whole = len(killable.left())
        until(lambda: len(killable.left()) < whole)
        run.kill()
        killable.gone_soon()


SLOW = f"""
[images.slow{WEB}]
provider = "docker"
base = "{{base}}"
install = ["true"]
verify = ["sleep 99"]
"""


@pytest.fixture(params=["docker", "podman"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Docker or Podman as the current engine."""
    if request.param == "docker":
        engine_images.require()
        yield endpoint.find()
        return
    podman = request.getfixturevalue("podman")
    with engines.use(podman):
        yield podman


@pytest.mark.parametrize("during", ["install", "verify"])
def test_a_killed_bake_leaves_nothing(
    engine: Engine, opened: Opened, tmp_path: Path, during: str
) -> None:
    """Its container and its unfinished image are removed, and nothing is in the catalog."""
    more = SLOW.format(base=engine_images.busybox())
    if during == "install":
        more = more.replace('["true"]', '["sleep 99"]')
    lifecycle = opened(more)
    with start_bake(tmp_path, f"slow{WEB}") as bake:
        until(
            lambda: is_running(engine, "sleep 99" if during == "verify" else "bake/run"), within=60
        )
        assert bakes(reaper.reap(lifecycle.project, dry_run=True)) == []
        bake.kill()
        until_gone(lambda: left(f"bake-slow{WEB}-"), within=SOON)
    until_gone(lambda: unfinished_images(engine))
    assert lifecycle.project.images.catalog.entries() == []


def test_reap_removes_a_bake_with_a_killed_guard(
    engine: Engine, opened: Opened, tmp_path: Path
) -> None:
    """Reap finds the container by its labels, and the unfinished image by its name."""
    lifecycle = opened(SLOW.format(base=engine_images.busybox()))
    with start_bake(tmp_path, f"slow{WEB}") as bake:
        until(lambda: is_running(engine, "sleep 99"), within=60)
        subprocess.run(["pkill", "-KILL", "-P", str(bake.pid)], check=True)
        bake.kill()
    assert unfinished_images(engine)
    assert bakes(reaper.reap(lifecycle.project, dry_run=False)) == [""]
    assert left(f"bake-slow{WEB}-") == []
    assert unfinished_images(engine) == []


def test_a_killed_bake_does_not_disturb_a_concurrent_bake(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clean-up after the killed bake leaves the container and the image of the other one."""
    wait = "until test -e /go; do sleep 0.1; done"
    more = SLOW.format(base=engine_images.busybox()).replace("sleep 99", wait)
    lifecycle = opened(more)
    engine = endpoint.find()
    others = tmp_path / "others"  # with a store and a state of their own
    others.mkdir()
    (others / "context").symlink_to(tmp_path / "context")
    (others / "ephemeral.toml").write_text((tmp_path / "ephemeral.toml").read_text())
    with start_bake(tmp_path, f"slow{WEB}") as bake:
        until(lambda: is_running(engine, wait), within=60)
        (verifying,) = bake_containers(engine)
        monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(others / "state"))
        with start_bake(others, f"slow{WEB}") as other:
            until(lambda: len(bake_containers(engine)) > 1, within=60)
            other.kill()
        until(lambda: bake_containers(engine) == [verifying])
        time.sleep(IN_FLIGHT)  # the killed bake's guard checks once more after that
        containers.run(engine, verifying, ["touch", "/go"], timeout=10)
        assert bake.wait(60) == 0
    (image,) = lifecycle.project.images.catalog.entries()
    until(lambda: unfinished_images(engine) == [image.digest])


def bake_containers(engine: Engine) -> list[str]:
    """The containers of these bakes."""
    found = engine.call("GET", "/containers/json", query={"all": True})
    return [one["Id"] for one in found if f"bake-slow{WEB}-" in str(one)]


def unfinished_images(engine: Engine) -> list[str]:
    """The images of these bakes, tagged or untagged."""
    query = {"all": True, "filters": {"label": [f"pytest-ephemeral.recipe=slow{WEB}"]}}
    return [one["Id"] for one in engine.call("GET", "/images/json", query=query)]


def bakes(reaped: list[reaper.Reaped]) -> list[str]:
    """The errors of these tests' reaped bakes, as other tests use the engine too."""
    return [one.error for one in reaped if one.id.startswith(f"bake-slow{WEB}-")]


def start_bake(folder: Path, image: str) -> subprocess.Popen[bytes]:
    argv = [PROGRAM, "bake", image]
    return subprocess.Popen(argv, cwd=folder, stderr=subprocess.DEVNULL)


def is_running(engine: Engine, command: str) -> bool:
    """Whether a container of these bakes runs the command."""
    found = engine.call("GET", "/containers/json")
    return any(command in one["Command"] and f"bake-slow{WEB}-" in str(one) for one in found)


def test_a_killed_build_leaves_no_container(opened: Opened, tmp_path: Path) -> None:
    """The engine ends a build when its client is gone."""
    opened(dockerfile="FROM {base}\nRUN sleep 99.25\n")
    engine = endpoint.find()

    def building() -> bool:
        found = engine.call("GET", "/containers/json", query={"all": True})
        return "sleep 99.25" in str(found)

    with start_bake(tmp_path, "web") as bake:
        until(building)
        bake.kill()
        until(lambda: not building(), within=SOON)
