"""A provider whose calls fail as a test sets them, and a lifecycle that uses it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from pytest_ephemeral import providers
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.environments.progress import Progress
from pytest_ephemeral.ledger import Ledger
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.protocol import Order, Owned, Status
from pytest_ephemeral.store.directory import DirectoryStore
from pytest_ephemeral.tables import Template
from support.hooks import RecordingHooks

TEMPLATE = Template(name="staging", provider="scripted", env={"KEY": "{env:LIFECYCLE_KEY}"})


class Scripted:
    """A provider that records its environments and calls, and fails where a test sets an error."""

    name = "scripted"
    forwards_ports = False

    def __init__(self) -> None:
        self.exists: set[str] = set()
        self.orders: list[Order] = []
        self.fails: dict[str, Exception] = {}
        self.seed_exit = 0
        self.calls: list[str] = []
        self.before: Callable[[str, str], None] = lambda call, id: None

    def _called(self, call: str, id: str) -> None:
        self.calls.append(call)
        self.before(call, id)
        if call in self.fails:
            raise self.fails[call]

    def launch(self, order: Order) -> Environment:
        self.orders.append(order)
        self.exists.add(order.environment.id)
        self._called("launch", order.environment.id)
        return msgspec.structs.replace(
            order.environment, url="http://127.0.0.1:1/", handle={"thing": "1"}
        )

    def status(self, environment: Environment) -> Status:
        self._called("status", environment.id)
        return Status("running" if environment.id in self.exists else "gone")

    def run(
        self, environment: Environment, argv: Sequence[str], *, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        self._called("run", environment.id)
        said = f"no table; key {self.orders[-1].variables['KEY']}\n"
        return subprocess.CompletedProcess(argv, self.seed_exit, "seeding\n", said)

    def logs(
        self, environment: Environment, *, since: str | None = None, tail: int | None = None
    ) -> str:
        return "hello\n"

    def keep(self, environment: Environment) -> None:
        self._called("keep", environment.id)

    def extend(self, environment: Environment, expires_at: datetime | None) -> None:
        self._called("extend", environment.id)

    def destroy(self, environment: Environment) -> None:
        self._called("destroy", environment.id)
        self.exists.discard(environment.id)

    def list_owned(self) -> Iterator[Owned]:
        return (Owned(id, {}) for id in self.exists)


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """The scripted provider, which is loaded for every name."""
    provider = Scripted()
    monkeypatch.setattr(providers, "load", lambda name: provider)
    monkeypatch.setenv("LIFECYCLE_KEY", "hunter22")
    return provider


@pytest.fixture
def hooks() -> RecordingHooks:
    return RecordingHooks()


@pytest.fixture
def told() -> list[Progress]:
    return []


@pytest.fixture
def lifecycle(tmp_path: Path, hooks: RecordingHooks, told: list[Progress]) -> Lifecycle:
    store = DirectoryStore(tmp_path / "store")
    project: Any = SimpleNamespace(
        ledger=Ledger(store), store=store, config=SimpleNamespace(root=Path())
    )
    return Lifecycle(project, hooks, run="run1", say=told.append)
