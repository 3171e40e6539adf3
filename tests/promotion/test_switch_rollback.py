"""Rollback of a promotion."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_ephemeral import labels
from pytest_ephemeral.errors import NothingMatchedError, PromotionError
from support.promotion import NAME, V1, V2, Site, Stage


def test_rollback_restores_the_previous_environment(stage: Stage) -> None:
    """v1 is production again and never expires; v2 gets an expiry."""
    stage.promoter().promote("v2")

    entry = stage.promoter().rollback()

    assert (entry.kind, entry.outcome, entry.target.environment) == ("rollback", "done", "v1")
    assert stage.addresses() == [V1]
    assert stage.find_production() == ["v1"]
    assert stage.provider_state("v1")["expires"] == labels.NEVER
    assert stage.get("v2").expires_at is not None
    assert stage.promoter().rollback().target.environment == "v2"


def test_a_failed_rollback_changes_nothing(stage: Stage, served: dict[str, Site]) -> None:
    """The target of a rollback is checked like that of a promotion."""
    stage.promoter().promote("v2")
    served["v1"].healthy = False

    with pytest.raises(PromotionError, match="503"):
        stage.promoter().rollback()

    assert stage.addresses() == [V2]
    assert stage.find_production() == ["v2"]


def test_rollback_to_a_destroyed_environment_is_refused(stage: Stage) -> None:
    """After ``keep-old``, the previous environment is gone."""
    stage.promoter().promote("v2")
    stage.ledger.remove("v1")

    with pytest.raises(NothingMatchedError, match="the rollback target v1 is gone"):
        stage.promoter().rollback()


def test_rollback_of_the_first_promotion_restores_the_record(
    make_stage: Callable[..., Stage],
) -> None:
    """The record before the first promotion is not ours, but it can be restored."""
    stage = make_stage()
    (stage.folder / "hosts").write_text(f"127.9.9.9 {NAME}\n")
    stage.promoter().promote("v1")

    stage.promoter().rollback()

    assert stage.addresses() == ["127.9.9.9"]
    assert stage.find_production() == []
    assert stage.get("v1").expires_at is not None


def test_rollback_without_a_previous_record_is_refused(stage: Stage) -> None:
    """A rollback would leave the name without a record."""
    with pytest.raises(PromotionError, match="production has no rollback target"):
        stage.promoter().rollback()
