"""Two concurrent commands on one environment or name; each order of events is forced."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pytest_ephemeral import labels
from pytest_ephemeral.cli import destroy
from pytest_ephemeral.cli.output import Printer
from pytest_ephemeral.environments import expiry
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.errors import (
    DecidedError,
    NothingMatchedError,
    PromotionError,
    SupersededError,
)
from pytest_ephemeral.promotion.approval_records import Approvals
from pytest_ephemeral.promotion.journal import Journal
from support.hooks import RecordingHooks
from support.late_zone import Zone
from support.promotion import V1, V2, Stage

LATER = datetime.now(UTC) + timedelta(hours=2)


def test_extend_does_not_expire_a_promoted_environment(stage: Stage) -> None:
    """``extend`` has read the environment before its promotion, and fails."""
    as_it_was = stage.get("v2")
    stage.promoter().promote("v2")

    with pytest.raises(PromotionError, match="v2 was not extended: it is production"):
        expiry.extend(stage.ledger, as_it_was, LATER)

    assert stage.provider_state("v2")["expires"] == labels.NEVER
    assert stage.get("v2").expires_at is None


def test_an_environment_being_destroyed_is_not_extended(stage: Stage) -> None:
    """``extend`` fails, instead of reporting a later expiry."""
    as_it_was = stage.get("v2")
    stage.ledger.change("v2", state="destroying")

    with pytest.raises(PromotionError, match="being destroyed"):
        expiry.extend(stage.ledger, as_it_was, LATER)
    stage.ledger.remove("v2")
    with pytest.raises(NothingMatchedError):
        expiry.extend(stage.ledger, as_it_was, LATER)


def test_down_spares_an_environment_promoted_meanwhile(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``down`` reads the environment before its promotion, and does not destroy it."""

    @contextmanager
    def meanwhile(project: Any, say: Any) -> Iterator[Lifecycle]:
        stage.promoter().promote("v2")
        yield Lifecycle(project, hooks=RecordingHooks(), run="down", say=say)

    stage.project.config.promotions = {}
    monkeypatch.setattr(destroy, "open_project", lambda _: stage.project)
    monkeypatch.setattr(destroy, "lifecycle", meanwhile)
    arguments = argparse.Namespace(ids=["v2"], all=False, production=False)

    assert destroy.down(arguments, Printer(as_json=False)) == 6

    assert stage.addresses() == [V2]
    assert stage.find_production() == ["v2"]
    assert not stage.provider_state("v2")["ended"]


def test_destruction_during_promotion_is_reported(stage: Stage) -> None:
    """The promotion ends with an error, so that a rollback can follow."""

    def destroyed(point: str) -> None:
        if point == "retire: begun":
            stage.ledger.remove("v2")

    with pytest.raises(PromotionError, match="production points to v2, which was destroyed"):
        stage.promoter(checkpoint=destroyed).promote("v2")

    assert Journal(stage.project.store, "production").head.run is None
    assert stage.promoter().rollback().target.environment == "v1"
    assert stage.addresses() == [V1]


def test_a_superseded_promotion_restores_the_ttl(make_stage: Callable[..., Stage]) -> None:
    """The promotion was rolled back as dead between its last check and its update."""
    stage = make_stage()
    zone = Zone(ttl=3)
    suspended = stage.promoter(backend=zone)
    update = zone.swap

    def late(old: Any, new: Any) -> str:
        zone.swap = update  # type: ignore[method-assign]
        stage.abandon()
        stage.promoter(backend=zone).rollback()
        return update(old, new)

    zone.swap = late  # type: ignore[method-assign]
    with pytest.raises(SupersededError):
        suspended.promote("v1")

    assert zone.records == zone.first


@pytest.mark.parametrize("decision", ["approved", "timed out"])
def test_an_extended_approval_deadline_is_respected(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, decision: Any
) -> None:
    """A decision depends on the record when it is written, not when it was read."""
    approvals, now = Approvals(stage.project.store), datetime.now(UTC)
    approvals.request(stage.get("v2"), deadline=now, now=now)
    read = approvals.get

    def get(id: str) -> Any:
        found = read(id)
        approvals.request(stage.get("v2"), deadline=LATER, now=now)
        return found

    monkeypatch.setattr(approvals, "get", get)
    with suppress(DecidedError):  # it is still open
        approvals.decide("v2", decision, by="anna", now=now)
    expected = "approved" if decision == "approved" else "pending"
    assert read("v2").state == expected
