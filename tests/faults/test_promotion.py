"""Promotion when processes, servers, stores and clocks fail.

Three things must never happen: a name that points to nothing, two environments that are both
production, and a production that expires.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pytest_ephemeral import labels, machine
from pytest_ephemeral.errors import PromotionError, StoreError
from pytest_ephemeral.promotion import journal
from pytest_ephemeral.promotion.dns_polling import Times
from pytest_ephemeral.promotion.journal import Journal
from support import web
from support.killed_promotions import check_promises, kill_at
from support.promotion import V1, V2, Site, Stage, make_stage, served, stage
from support.waiting import until

__all__ = ["make_stage", "served", "stage"]


#: Every point between two actions of a successful promotion.
POINTS = [
    *(
        f"{step}: {when}"
        for step in ("disarm", "journal", "lower-ttl")
        for when in ("begun", "done")
    ),
    "check: begun",
    "check: done",
    "switch: begun",
    "switch: moved",
    "switch: done",
    "propagate: begun",
    "propagate: done",
    "verify: begun",
    "verify: done",
    "record: begun",
    "retire: begun",
    "retire: done",
]


#: Every point of an undo.
BACKWARD = ["restore: begun", "restore: done", "rearm: begun", "rearm: done"]


def test_the_kill_points_are_complete(stage: Stage) -> None:
    """A new step must be added here, so that it is tested with a kill too."""
    seen: list[str] = []
    stage.promoter(checkpoint=seen.append).promote("v2")
    assert seen == POINTS


@pytest.mark.parametrize("point", POINTS)
def test_running_a_killed_promotion_again_finishes_it(stage: Stage, point: str) -> None:
    """The same command finishes it, at whatever point it was killed."""
    kill_at(stage, "v2", point)
    check_promises(stage)

    stage.promoter().promote("v2")

    assert check_promises(stage) == "v2"
    assert stage.find_production() == ["v2"]
    assert stage.get("v1").expires_at is not None
    head = Journal(stage.project.store, "production").head
    assert head.run is None
    assert head.previous is not None
    assert head.previous.environment == "v1"
    told = journal.history(stage.project.store, "production")
    assert [entry.target.environment for entry in told] == ["v1", "v2"]


@pytest.mark.parametrize("point", POINTS)
def test_a_rollback_undoes_a_killed_promotion(stage: Stage, point: str) -> None:
    """v1 is production, and v2 has an expiry."""
    kill_at(stage, "v2", point)

    stage.promoter().rollback()

    assert check_promises(stage) == "v1"
    assert stage.find_production() == ["v1"]
    assert stage.get("v2").expires_at is not None
    assert Journal(stage.project.store, "production").head.run is None


@pytest.mark.parametrize("point", BACKWARD)
def test_a_killed_undo_is_finished_by_running_it_again(
    stage: Stage, served: dict[str, Site], point: str
) -> None:
    """The same command finishes the undo, and reports its cause."""
    served["v2"].refuses = stage.when_live("v2")
    kill_at(stage, "v2", point)
    served["v2"].refuses = lambda _: False  # the earlier failure still counts

    with pytest.raises(PromotionError, match="503"):
        stage.promoter().promote("v2")

    assert check_promises(stage) == "v1"
    assert stage.get("v2").expires_at is not None


@pytest.mark.parametrize(
    "point", ["disarm: done", "switch: moved", "record: begun", "retire: done"]
)
def test_running_a_killed_rollback_again_finishes_it(stage: Stage, point: str) -> None:
    """The same command finishes it, as with a promotion."""
    stage.promoter().promote("v2")
    kill_at(stage, "rollback", point)
    check_promises(stage)

    stage.promoter().rollback()

    assert check_promises(stage) == "v1"
    assert stage.find_production() == ["v1"]


def test_an_unfinished_promotion_blocks_another_environment(stage: Stage) -> None:
    """The error has the command that finishes the unfinished promotion."""
    kill_at(stage, "v2", "switch: moved")
    stage.add("v3", "127.77.0.3")

    with pytest.raises(PromotionError, match="promote v2 --to production"):
        stage.promoter().promote("v3")


def test_of_two_promotions_one_succeeds_and_the_other_names_it(stage: Stage) -> None:
    """As long as the first process lives, no other one takes over."""
    at_switch, go = threading.Event(), threading.Event()

    def hold(point: str) -> None:
        if point == "switch: begun":
            at_switch.set()
            assert go.wait(20)

    first = threading.Thread(target=lambda: stage.promoter(checkpoint=hold).promote("v2"))
    first.start()
    assert at_switch.wait(20)
    try:
        owner = f"{machine.this_owner('').user}@{machine.this_owner('').host}:{os.getpid()}"
        with pytest.raises(PromotionError, match=f"{owner} has been promoting v2"):
            stage.promoter().promote("v2")
        with pytest.raises(PromotionError, match="has been promoting v2"):
            stage.promoter().rollback()
        with pytest.raises(PromotionError, match="has been promoting v2"):
            stage.promoter().plan("v2")
    finally:
        go.set()
        first.join()
    assert stage.find_production() == ["v2"]


def test_one_of_many_simultaneous_promotions_succeeds(stage: Stage) -> None:
    """Six begin at the same time, and exactly one promotion happens."""
    outcomes: list[Any] = []
    together = threading.Barrier(6)

    def promote() -> None:
        promoter = stage.promoter()
        together.wait()
        try:
            outcomes.append(promoter.promote("v2"))
        except PromotionError as error:
            outcomes.append(error)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: promote(), range(6)))

    done = [one for one in outcomes if isinstance(one, journal.HistoryEntry)]
    assert len(done) == 1
    assert check_promises(stage) == "v2"
    told = journal.history(stage.project.store, "production")
    assert [entry.target.environment for entry in told] == ["v1", "v2"]


@pytest.mark.parametrize(
    "point", ["disarm: begun", "switch: begun", "switch: done", "retire: begun"]
)
def test_a_lost_store_stops_the_promotion(
    stage: Stage, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step runs that can't be recorded; when the store is back, the same command finishes."""
    real = stage.project.store.replace

    def lost(*_: Any) -> str:
        raise StoreError("the disk is gone")

    def lose(seen: str) -> None:
        if seen == point:
            monkeypatch.setattr(stage.project.store, "replace", lost)

    with pytest.raises(StoreError) as caught:
        stage.promoter(checkpoint=lose).promote("v2")
    assert any("Run the same command" in note for note in caught.value.__notes__)

    monkeypatch.setattr(stage.project.store, "replace", real)
    check_promises(stage)
    stage.abandon()
    stage.promoter().promote("v2")
    assert check_promises(stage) == "v2"


def test_a_broken_journal_is_an_error_and_changes_nothing(stage: Stage) -> None:
    """A truncated journal does not tell what has been done."""
    (stage.folder / "store" / "promotions" / "production" / "current.json").write_text('{"cur')

    with pytest.raises(StoreError, match="is broken"):
        stage.promoter().promote("v2")

    assert stage.addresses() == [V1]


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_wrong_clock_ends_no_production(stage: Stage, hours: int) -> None:
    """Production has no expiry; the clock affects only that of the old environment."""
    wrong = Times(now=lambda: datetime.now(UTC) + timedelta(hours=hours), patience=2, propagation=5)

    stage.promoter(times=wrong).promote("v2")

    assert check_promises(stage) == "v2"
    stage.promoter(times=wrong).rollback()
    assert check_promises(stage) == "v1"


def test_an_interrupt_before_the_verification_undoes_the_promotion(stage: Stage) -> None:
    """Ctrl-C undoes all steps that were done."""

    def interrupt(point: str) -> None:
        if point == "verify: begun":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.promoter(checkpoint=interrupt).promote("v2")

    assert check_promises(stage) == "v1"
    assert Journal(stage.project.store, "production").head.run is None


def test_a_stopped_old_environment_is_no_obstacle(stage: Stage) -> None:
    """Promotion is needed most when production is down."""
    (stage.folder / "served" / "v1.json").unlink()

    stage.promoter().promote("v2")

    assert stage.addresses() == [V2]
    assert stage.get("v1").expires_at is not None  # so that reap closes its record


def test_a_failed_undo_is_reported_and_continued(
    make_stage: Callable[..., Stage], served: dict[str, Site]
) -> None:
    """Both environments stay meanwhile, so that the name points to a live one."""
    stage = make_stage()
    stage.promoter().promote("v1")
    served["v2"].refuses = stage.when_live("v2")
    promoter = stage.promoter()
    file = stage.folder / "hosts"

    def freeze(point: str) -> None:
        if point == "restore: begun":
            file.rename(stage.folder / "kept")
            file.mkdir()

    promoter.checkpoint = freeze
    with pytest.raises(Exception, match="503") as caught:
        promoter.promote("v2")
    assert "Undoing it failed" in "".join(caught.value.__notes__)
    assert stage.provider_state("v1")["expires"] == labels.NEVER
    assert stage.provider_state("v2")["expires"] == labels.NEVER

    file.rmdir()
    (stage.folder / "kept").rename(file)
    stage.abandon()
    with pytest.raises(PromotionError, match="is unchanged"):
        stage.promoter().promote("v2")
    assert check_promises(stage) == "v1"


def test_clients_never_meet_a_gap(stage: Stage, served: dict[str, Site]) -> None:
    """A client that resolves and asks in a loop sees v1, then v2, and no failure."""
    seen: list[str] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            [address] = stage.addresses()
            seen.append(web.get(f"http://{address}:{stage.port}/"))

    thread = threading.Thread(target=client)
    thread.start()
    until(lambda: len(seen) > 20)
    stage.promoter().promote("v2")
    count = len(seen)
    until(lambda: len(seen) > count + 20)
    stop.set()
    thread.join()

    assert sorted(seen) == seen
    assert set(seen) == {"site 1", "site 2"}
    assert json.loads((stage.folder / "served" / "v1.json").read_text())["ended"] is False
