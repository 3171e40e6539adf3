"""Promotions by processes of other machines, and by suspended processes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pytest_ephemeral.errors import PromotionError, SupersededError
from pytest_ephemeral.promotion import journal
from pytest_ephemeral.promotion.dns_polling import Times
from pytest_ephemeral.promotion.journal import Journal
from support.killed_promotions import check_promises, kill_at
from support.promotion import Stage, make_stage, served, stage

__all__ = ["make_stage", "served", "stage"]


def _assign_to_another_machine(stage: Stage) -> None:
    """Assign the unfinished run to another machine."""
    mine = Journal(stage.project.store, "production")
    mine.note(owner=msgspec.structs.replace(mine.run.owner, host="elsewhere", machine="elsewhere"))


def test_a_live_process_of_another_machine_is_left_alone(stage: Stage) -> None:
    """Its heartbeats show that it lives, by no clock but that of the waiting process."""
    kill_at(stage, "v2", "switch: begun")
    _assign_to_another_machine(stage)
    other = Journal(stage.project.store, "production")

    def meanwhile(_: float) -> None:
        other.refresh()
        other.heartbeat()

    with pytest.raises(PromotionError, match="@elsewhere:"):
        stage.promoter(times=Times(pause=meanwhile)).promote("v2")


def test_a_silent_process_of_another_machine_is_replaced(stage: Stage) -> None:
    """It is replaced after a period without a heartbeat."""
    kill_at(stage, "v2", "switch: begun")
    _assign_to_another_machine(stage)
    watched: list[float] = []

    stage.promoter(times=Times(pause=watched.append, patience=2, propagation=5)).promote("v2")

    assert sum(watched) >= journal.SILENCE
    assert check_promises(stage) == "v2"


def test_a_resumed_promotion_undoes_its_switch(stage: Stage) -> None:
    """A suspended promotion, rolled back meanwhile, moves the name and then moves it back."""
    kill_at(stage, "v2", "switch: begun")
    suspended = stage.promoter()
    mine = suspended._journal()
    real = suspended.backend.swap

    def late(old: Any, new: Any) -> str:
        """Roll back between the check of the journal and the update of the name."""
        suspended.backend.swap = real  # type: ignore[method-assign]
        stage.abandon()
        stage.promoter().rollback()
        return real(old, new)

    suspended.backend.swap = late  # type: ignore[method-assign]
    mine.take_over()

    with pytest.raises(SupersededError):
        suspended._execute(mine)

    assert check_promises(stage) == "v1"
    assert stage.find_production() == ["v1"]
