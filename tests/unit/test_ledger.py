"""The ledger: its records list all environments that may exist."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pytest_ephemeral.errors import NothingMatchedError, RecordExistsError, TamperedRecordError
from pytest_ephemeral.ledger import Ledger, register
from pytest_ephemeral.store.directory import DirectoryStore
from pytest_ephemeral.tables import Template
from support.environments import make_environment

TEMPLATE = Template(name="staging", provider="local", env={"KEY": "{env:SECRET}"})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(DirectoryStore(tmp_path / "store"))


def test_a_record_contains_environment_and_template(ledger: Ledger) -> None:
    """The template has the references to secrets, not their values."""
    ledger.create(make_environment(), TEMPLATE)

    record = ledger.record("staging-7f3k2q")

    assert record.environment.template == "staging"
    assert record.template["env"] == {"KEY": "{env:SECRET}"}


def test_duplicate_ids_are_refused(ledger: Ledger) -> None:
    """A second environment with the same id can't be recorded."""
    ledger.create(make_environment(), TEMPLATE)

    with pytest.raises(RecordExistsError):
        ledger.create(make_environment(), TEMPLATE)


def test_register_retries_when_an_id_is_taken(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random ids may collide; then another one is chosen."""
    letters = iter("aaaaaa" + "aaaaaa" + "bbbbbb")
    monkeypatch.setattr("secrets.choice", lambda _: next(letters))

    ids = [register(ledger, TEMPLATE, make_environment).id for _ in range(2)]

    assert ids == ["staging-aaaaaa", "staging-bbbbbb"]


def test_an_environment_is_found_by_unique_id_prefix(ledger: Ledger) -> None:
    """A prefix that several ids share is an error, and the message lists these ids."""
    ledger.create(make_environment("staging-aaaaaa"), TEMPLATE)
    ledger.create(make_environment("staging-abbbbb"), TEMPLATE)

    assert ledger.get("staging-ab").id == "staging-abbbbb"
    with pytest.raises(NothingMatchedError, match="staging-aaaaaa, staging-abbbbb"):
        ledger.get("staging-a")


def test_a_mistyped_id_gets_a_suggestion(ledger: Ledger) -> None:
    """The message suggests the most similar id."""
    ledger.create(make_environment(), TEMPLATE)

    with pytest.raises(NothingMatchedError, match="Did you mean 'staging-7f3k2q'"):
        ledger.get("stagin-7f3k2q")


@pytest.mark.parametrize("content", [b"", b"{", b'{"environment": 3}', b"\xff\xfe"])
def test_a_broken_record_is_reported_and_skipped(ledger: Ledger, content: bytes) -> None:
    """An empty, truncated or foreign file does not hide the other records."""
    ledger.create(make_environment(), TEMPLATE)
    ledger.store.create("environments/broken-aaaaaa.json", content)

    assert [one.id for one in ledger.entries()] == ["staging-7f3k2q"]
    assert list(ledger.broken) == ["environments/broken-aaaaaa.json"]
    with pytest.raises(TamperedRecordError):
        ledger.get("broken-aaaaaa")


def test_concurrent_changes_of_different_fields_all_apply(ledger: Ledger) -> None:
    """Four threads change one record at the same time, and no change is lost."""
    ledger.create(make_environment(), TEMPLATE)
    later = datetime.now(UTC) + timedelta(days=1)
    changes = [{"state": "ready"}, {"expires_at": later}, {"kept": True}, {"url": "http://x/"}]
    barrier = threading.Barrier(len(changes))

    def change(what: dict[str, object]) -> None:
        barrier.wait()
        ledger.change("staging-7f3k2q", **what)

    with ThreadPoolExecutor(len(changes)) as pool:
        list(pool.map(change, changes))

    now = ledger.get("staging-7f3k2q")
    assert (now.state, now.expires_at, now.kept, now.url) == ("ready", later, True, "http://x/")


def test_a_late_change_does_not_restore_a_removed_record(ledger: Ledger) -> None:
    """Neither the late change nor a second removal is an error."""
    ledger.create(make_environment(), TEMPLATE)
    ledger.remove("staging-7f3k2q")

    ledger.change("staging-7f3k2q", state="ready")
    ledger.remove("staging-7f3k2q")

    assert ledger.entries() == []


def test_entries_come_oldest_first(ledger: Ledger) -> None:
    """The order depends on the time of creation, not on the ids."""
    now = datetime.now(UTC)
    ledger.create(make_environment("a-bbbbbb", created_at=now - timedelta(seconds=1)), TEMPLATE)
    ledger.create(make_environment("z-aaaaaa", created_at=now - timedelta(seconds=2)), TEMPLATE)

    assert [one.id for one in ledger.entries()] == ["z-aaaaaa", "a-bbbbbb"]
