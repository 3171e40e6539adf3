"""Reaping: only environments that are ours and overdue are removed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from pytest_ephemeral import labels, machine, providers
from pytest_ephemeral.broker import records
from pytest_ephemeral.environments import reaper
from pytest_ephemeral.errors import DestroyError, UnavailableError
from pytest_ephemeral.ledger import Ledger
from pytest_ephemeral.models import Environment, Owner
from pytest_ephemeral.providers.protocol import Owned
from pytest_ephemeral.store.directory import DirectoryStore
from pytest_ephemeral.tables import Template
from support.environments import make_environment

HOUR = timedelta(hours=1)
TEMPLATE = Template(name="staging", provider="scripted")


class Scripted:
    """A provider whose resources are set by the test."""

    def __init__(self) -> None:
        self.held: dict[str, Owned] = {}
        self.stuck: set[str] = set()
        self.destroyed: list[str] = []

    def destroy(self, environment: Environment) -> None:
        self._gone(environment.id)

    def sweep(self, owned: Owned) -> None:
        self._gone(owned.id)

    def _gone(self, id: str) -> None:
        if id in self.stuck:
            raise DestroyError(f"{id} hangs")
        self.destroyed.append(id)
        self.held.pop(id, None)

    def list_owned(self) -> Iterator[Owned]:
        return iter(list(self.held.values()))


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    provider = Scripted()

    def load(name: str) -> Scripted:
        if name != "scripted":
            raise UnavailableError("no engine")
        return provider

    monkeypatch.setattr(providers, "load", load)
    monkeypatch.setattr(providers, "names", lambda: ["absent", "scripted"])
    return provider


@pytest.fixture
def project(tmp_path: Path) -> Any:
    config = SimpleNamespace(templates={}, images={})
    return SimpleNamespace(ledger=Ledger(DirectoryStore(tmp_path / "store")), config=config)


def dead_owner() -> Owner:
    """An owner on this machine that has ended, as its process id has another start time."""
    return msgspec.structs.replace(machine.this_owner("run"), started="1")


def recorded(project: Any, id: str, **changes: Any) -> Environment:
    environment = make_environment(id, **{"provider": "scripted", "template": "staging", **changes})
    project.ledger.create(environment, TEMPLATE)
    return environment


def held(provider: Scripted, id: str, *, expires: str, abandoned: bool = False) -> None:
    provider.held[id] = Owned(id, {labels.EXPIRES: expires}, "a process", abandoned)


def reaped(project: Any, *, dry_run: bool = False) -> dict[str, str]:
    return {one.id: one.reason for one in reaper.reap(project, dry_run=dry_run)}


def test_an_environment_kept_meanwhile_is_not_removed(
    project: Any, provider: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user may keep it after the ledger was read and before the removal."""
    one = recorded(project, "a-refused", owner=dead_owner(), problem="access denied")

    def is_alive(owner: Owner) -> bool:
        project.ledger.change(one.id, kept=True)
        return False

    monkeypatch.setattr(machine, "is_alive", is_alive)
    assert len(list(records.remove_earlier_leaks(project))) == 1
    assert provider.destroyed == []


def test_reap_removes_only_expired_and_orphaned_environments(
    project: Any, provider: Scripted
) -> None:
    """Kept environments stay until they expire. Production has no expiry and stays."""
    past = datetime.now(UTC) - HOUR
    recorded(project, "a-expired", expires_at=past)
    recorded(project, "b-orphaned", owner=dead_owner())
    recorded(project, "c-alive")
    recorded(project, "d-kept", owner=dead_owner(), kept=True)
    recorded(project, "e-production", owner=dead_owner(), expires_at=None)
    recorded(project, "f-kept-too-long", owner=dead_owner(), kept=True, expires_at=past)

    found = reaped(project)

    assert set(found) == {"a-expired", "b-orphaned", "f-kept-too-long"}
    assert "expired at" in found["a-expired"]
    assert "is gone" in found["b-orphaned"]
    assert set(provider.destroyed) == set(found)
    assert {one.id for one in project.ledger.entries()} == {"c-alive", "d-kept", "e-production"}


def test_environments_of_other_machines_are_not_orphaned(project: Any, provider: Scripted) -> None:
    """It is unknown whether a process of another machine runs, so only the expiry counts."""
    elsewhere = msgspec.structs.replace(dead_owner(), machine="another-machine")
    recorded(project, "a-elsewhere", owner=elsewhere)

    assert reaped(project) == {}


@pytest.mark.parametrize("attribute", ["boot", "pid_namespace"])
def test_environments_of_another_boot_are_not_orphaned(
    project: Any, provider: Scripted, attribute: str
) -> None:
    """A clone of this machine, or a container with its name, may have live runs of its own."""
    owner = msgspec.structs.replace(dead_owner(), **{attribute: "another"})
    recorded(project, "a-of-a-clone", owner=owner)
    recorded(project, "b-expired", owner=owner, expires_at=datetime.now(UTC) - HOUR)

    assert set(reaped(project)) == {"b-expired"}


def test_a_dry_run_removes_nothing(project: Any, provider: Scripted) -> None:
    """It returns what would be removed."""
    recorded(project, "a-orphaned", owner=dead_owner())
    held(provider, "b-abandoned", expires=labels.NEVER, abandoned=True)

    assert set(reaped(project, dry_run=True)) == {"a-orphaned", "b-abandoned"}

    assert provider.destroyed == []
    assert set(reaped(project)) == {"a-orphaned", "b-abandoned"}


def test_unrecorded_resources_are_reaped_by_their_labels(project: Any, provider: Scripted) -> None:
    """Another ledger may have their records, so only expired or abandoned ones are removed."""
    past, future = (datetime.now(UTC) - HOUR).isoformat(), (datetime.now(UTC) + HOUR).isoformat()
    held(provider, "a-expired", expires=past)
    held(provider, "b-current", expires=future)
    held(provider, "c-production", expires=labels.NEVER)
    held(provider, "d-abandoned", expires=future, abandoned=True)
    held(provider, "e-garbled", expires="tomorrow")
    held(provider, "f-zoneless", expires="2020-01-01T00:00:00")

    assert set(reaped(project)) == {"a-expired", "d-abandoned"}
    assert set(provider.held) == {"b-current", "c-production", "e-garbled", "f-zoneless"}


def test_a_record_takes_precedence_over_labels(project: Any, provider: Scripted) -> None:
    """After an extension, a label may have the old expiry."""
    recorded(project, "a-extended")
    held(provider, "a-extended", expires=(datetime.now(UTC) - HOUR).isoformat())

    assert reaped(project) == {}


def test_a_failed_removal_is_reported_and_keeps_its_record(
    project: Any, provider: Scripted
) -> None:
    """The other environments are removed, and an error is raised at the end."""
    recorded(project, "a-stuck", owner=dead_owner())
    recorded(project, "b-orphaned", owner=dead_owner())
    provider.stuck = {"a-stuck"}

    found = reaper.reap(project, dry_run=False)

    assert provider.destroyed == ["b-orphaned"]
    assert [one.id for one in project.ledger.entries()] == ["a-stuck"]
    with pytest.raises(DestroyError, match=r"a-stuck \(scripted\): a-stuck hangs"):
        reaper.raise_leftovers(found)


def test_reaping_an_empty_ledger_succeeds(project: Any, provider: Scripted) -> None:
    """The provider has no resources of ours either."""
    reaper.raise_leftovers(reaper.reap(project, dry_run=False))


@pytest.mark.parametrize("content", [b"{", b"[]", b"", b"\xff"])
def test_a_broken_record_is_an_error_but_others_are_reaped(
    project: Any, provider: Scripted, content: bytes
) -> None:
    """Its environment may still run, so ``reap`` fails with exit status 6."""
    project.ledger.store.create("environments/a-bad.json", content)
    recorded(project, "b-orphaned", owner=dead_owner())

    found = reaper.reap(project, dry_run=False)

    assert provider.destroyed == ["b-orphaned"]
    with pytest.raises(DestroyError, match="a-bad"):
        reaper.raise_leftovers(found)


def test_a_record_under_a_wrong_path_is_refused(project: Any, provider: Scripted) -> None:
    """It is a copy or a forgery, so the environment that it names is not touched."""
    recorded(project, "a-victim")
    data = project.ledger.store.read("environments/a-victim.json").data
    project.ledger.store.create("environments/b-copy.json", data)

    found = reaper.reap(project, dry_run=False)

    assert provider.destroyed == []
    with pytest.raises(DestroyError, match="belongs to another environment, a-victim"):
        reaper.raise_leftovers(found)


@pytest.mark.parametrize("id", ["..", ".", "a/../../b", "a\n", "", "A", "-a", "a" * 80])
def test_invalid_ids_are_refused(project: Any, provider: Scripted, id: str) -> None:
    """Providers use ids in paths and names."""
    past = datetime.now(UTC) - HOUR
    recorded(project, "a-model", expires_at=past)
    data = project.ledger.store.read("environments/a-model.json").data
    project.ledger.remove("a-model")
    forged = data.replace(b'"a-model"', json.dumps(id).encode())
    project.ledger.store.create("environments/a-model.json", forged)

    found = reaper.reap(project, dry_run=False)

    assert provider.destroyed == []
    assert [one.id for one in found if one.error] == ["a-model"]


def test_a_clock_set_forward_destroys_nothing(
    project: Any, provider: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock since boot, which can't be set, the environment has not expired."""
    three_hours_ago = datetime.now(UTC) - 3 * HOUR
    recorded(project, "a-live", created_at=three_hours_ago, expires_at=three_hours_ago + 2 * HOUR)

    found = reaper.reap(project, dry_run=False)

    assert provider.destroyed == []
    with pytest.raises(DestroyError, match="clock was set forward by 180 min"):
        reaper.raise_leftovers(found)


def test_the_clock_of_the_provider_decides_the_expiry(
    project: Any, provider: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of this machine is ahead of it, and is not used."""
    old = msgspec.structs.replace(machine.this_owner("run"), uptime=machine.uptime() - 7200)
    now = datetime.now(UTC)
    recorded(project, "a-live", created_at=now - 2 * HOUR, expires_at=now - HOUR, owner=old)
    # A separate class, because isinstance caches its results for each class.
    clocked = type("Clocked", (Scripted,), {"clock": lambda *_: now - 2 * HOUR})
    monkeypatch.setattr(provider, "__class__", clocked)

    found = reaper.reap(project, dry_run=False)

    assert provider.destroyed == []
    with pytest.raises(DestroyError, match="120 min ahead of the clock where it runs"):
        reaper.raise_leftovers(found)

    monkeypatch.setattr(clocked, "clock", lambda *_: now)
    assert set(reaped(project)) == {"a-live"}
