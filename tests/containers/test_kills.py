"""Owners that are killed: nothing that they had asked for outlives them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import engine_images
import pytest
from waiting import until

from containers.project import COMMAND, WEB, Opened, a_run, left
from pytest_ephemeral.environments import reaper
from pytest_ephemeral.providers.docker import finding


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
