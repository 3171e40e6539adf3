"""A simulated AWS account for these tests, one for each worker; each test sets its own faults."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aws.harness import Account, account
from aws.permissions import PAGE, documented, needed
from pytest_ephemeral import providers
from pytest_ephemeral.artifacts import open_repository
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.images.pipeline import Images
from pytest_ephemeral.ledger import Ledger
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers.cloudformation import stacks
from pytest_ephemeral.providers.ec2 import (
    amis,
    builders,
    console,
    instance_watcher,
    removal_steps,
    root_volumes,
    run_instances,
    security_groups,
)
from pytest_ephemeral.providers.ec2.tables import Ec2Recipe, Ec2Template
from pytest_ephemeral.store import open_store
from pytest_ephemeral.testing import APPLICATION
from support.hooks import SilentHooks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a loopback address each")


class Bench:
    """A project on the simulated account, with which tests bake, launch and destroy."""

    def __init__(self, account: Any, folder: Path, store: Path | None = None) -> None:
        self.account = account
        self.folder = folder
        self.messages: list[str] = []
        self.keys: dict[str, Any] = {}
        self.store = open_store(str(store or folder / "store"), folder)
        artifacts = open_repository(str(folder / "artifacts"), folder)
        self.images = Images(store=self.store, artifacts=artifacts, root=folder)
        self.ledger = Ledger(self.store)
        self.config = SimpleNamespace(
            root=folder,
            recipe=lambda _: self.recipe(),
            images={"app": self.recipe()},
            templates={"web": self.template()},
        )
        self.lifecycle = Lifecycle(self, SilentHooks(), run=f"run-{folder.name}")  # type: ignore[arg-type]

    def recipe(self, **keys: Any) -> Ec2Recipe:
        return Ec2Recipe(
            **{
                "name": "app",
                "base": self.account.base,
                "subnet": self.account.subnets[0],
                "install": ['cp "$ARTIFACT" "$PREFIX/application.py"; echo installed'],
                "verify": ['test -f "$PREFIX/application.py"'],
                "artifact": str(APPLICATION),
                **self.keys,
                **keys,
            }
        )

    def template(self, **keys: Any) -> Ec2Template:
        serve = f'exec "{sys.executable}" "$PREFIX/application.py" "$HOST" "$PORT"'
        return Ec2Template(
            **{
                "name": "web",
                "image": "app",
                "command": serve,
                "subnet": self.account.subnets,
                "port": 18573,
                **keys,
            }
        )

    def bake(self, mode: Any = "missing", **keys: Any) -> Image:
        return self.images.obtain(self.recipe(**keys), mode=mode, say=self.messages.append)


@pytest.fixture(scope="session")
def _account() -> Iterator[Account]:
    with account() as made:
        yield made
        unlisted = needed(made.tell("own")) - documented()
        assert not unlisted, f"calls whose permissions {PAGE.name} does not list: {unlisted}"


@pytest.fixture
def bench(_account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Provide a project for one test; at its end, only cataloged images may remain."""
    for name, value in _account.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))
    quick(monkeypatch)
    _account.tell("faults")
    _account.tell("times", boot=0.1, end=0.1, linger=0.0, ami=0.1, unseen=0.0, stack=0.1, root=0.1)
    _account.tell("failing")
    _account.tell("tasks", state="succeeded")
    made = Bench(_account, tmp_path)
    yield made
    _account.tell("faults")
    running = [one for one in _account.left() if one.startswith("i-")]
    if running:
        _account.clear()  # otherwise all later tests would fail, too
    for image in made.images.catalog.entries():
        providers.load("ec2").remove(image)
    if left := [*_account.left(), *_account.verified()]:
        _account.clear()
    assert (running, left) == ([], [])


def quick(patch: pytest.MonkeyPatch, every: float = 0.1) -> None:
    """Poll more often, as calls are not throttled here; and use the AWS providers only."""
    patch.setattr(providers, "names", lambda: ["ec2", "cloudformation"])
    patch.setattr(instance_watcher, "INTERVAL", every)
    patch.setattr(instance_watcher, "IDLE", 2.0)
    patch.setattr(instance_watcher, "LONGEST_INTERVAL", 1.0)  # less than IDLE
    patch.setattr(security_groups, "PAUSE", every)
    for module in (amis, builders):
        patch.setattr(module, "POLL", every)
    patch.setattr(builders, "CONSOLE_POLL", every)
    for module in (removal_steps, root_volumes):
        patch.setattr(module, "POLL", every)
    patch.setattr(console, "FRESH", every)
    patch.setattr(run_instances, "PAUSE", every)
    patch.setattr(stacks, "POLL", every)
