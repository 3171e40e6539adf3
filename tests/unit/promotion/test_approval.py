"""A person's yes or no: one decision stands, and nobody's word is a no."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pytest_ephemeral.durations import Duration
from pytest_ephemeral.errors import (
    ConfigurationError,
    DecidedError,
    NothingMatchedError,
    PromotionError,
    RejectedError,
    StoreError,
    UnansweredError,
)
from pytest_ephemeral.images import stages
from pytest_ephemeral.images.stages import Stage as Passed
from pytest_ephemeral.promotion import approval as approving
from pytest_ephemeral.promotion import requirements
from pytest_ephemeral.promotion.approval_records import Approvals
from support.promotion import V1, Stage, make_stage, served

__all__ = ["make_stage", "served"]

NOW = datetime.now(UTC)


@pytest.fixture
def stage(make_stage: Any) -> Stage:
    """A project of which v1 and v2 are up."""
    made: Stage = make_stage(requires=["tests", "approval"])
    return made


def ask(stage: Stage, id: str = "v1", wait: float = 60) -> Any:
    return approving.ask(
        stage.ledger,
        stage.get(id),
        wait=Duration(wait),
        publish=lambda environment, url: stage.published.append((environment.id, url)),
    )


def test_a_request_is_recorded_and_keeps_the_environment_up(stage: Stage) -> None:
    """The environment outlives its owner and the wait; its link is told."""
    stage.add("short", V1, ttl=30)

    asked = ask(stage, "short", wait=3600)

    assert (asked.state, asked.environment) == ("pending", "short")
    assert asked.image == stage.get("short").image
    held = stage.get("short")
    assert held.kept
    assert held.expires_at == asked.deadline + approving.AFTER_YES
    assert stage.provider_state("short") == {
        "expires": str(held.expires_at),
        "kept": True,
        "ended": False,
    }
    assert stage.published == [("short", f"http://{V1}:{stage.port}/")]


def test_a_request_never_shortens_the_expiry(stage: Stage) -> None:
    """What lives longer anyway lives on."""
    before = stage.get("v1").expires_at
    ask(stage, wait=1)
    assert stage.get("v1").expires_at == before


def test_the_total_wait_for_approval_is_limited(stage: Stage) -> None:
    """For one request, and for asking again and again."""
    with pytest.raises(ConfigurationError, match="7d at most"):
        ask(stage, wait=approving.LONGEST_WAIT + 1)
    first = Approvals(stage.project.store)
    then = NOW - timedelta(days=6.5)
    first.request(stage.get("v1"), deadline=then + timedelta(days=1), now=then)

    again = ask(stage, wait=approving.LONGEST_WAIT)

    assert again.deadline == NOW + timedelta(days=0.5)


def test_a_stopped_environment_can_not_be_approved(stage: Stage) -> None:
    """There would be nothing behind the link."""
    (stage.folder / "served" / "v1.json").unlink()
    with pytest.raises(NothingMatchedError, match="is not running"):
        ask(stage)


@pytest.mark.parametrize("decision", ["approved", "rejected"])
def test_a_decision_ends_the_wait(stage: Stage, decision: Any) -> None:
    """On whichever machine it was made; who, when and why are kept."""
    asked = ask(stage)
    elsewhere = Approvals(stage.project.store)
    pauses: list[float] = []

    def meanwhile(seconds: float) -> None:
        pauses.append(seconds)
        elsewhere.decide("v1", decision, by="anna", comment="looks right", now=datetime.now(UTC))

    found = approving.await_decision(stage.ledger, asked, pause=meanwhile)

    assert (found.state, found.decided_by, found.comment) == (decision, "anna", "looks right")
    assert found.decided_at is not None
    assert len(pauses) == 1


def test_only_a_rejection_is_an_error(stage: Stage) -> None:
    """With the contract's exit statuses."""
    asked = ask(stage)
    asked.check()
    yes = Approvals(stage.project.store).decide("v1", "approved", by="anna", now=NOW)
    yes.check()
    ask(stage, "v2")
    no = Approvals(stage.project.store).decide("v2", "rejected", by="anna", now=NOW)
    with pytest.raises(RejectedError) as caught:
        no.check()
    assert caught.value.exit_status == 4


def test_no_response_in_time_is_a_rejection(stage: Stage) -> None:
    """It is recorded, so that it stays one."""
    asked = ask(stage, wait=60)

    found = approving.await_decision(stage.ledger, asked, now=lambda: asked.deadline)

    assert found.state == "timed out"
    with pytest.raises(UnansweredError) as caught:
        found.check()
    assert caught.value.exit_status == 5
    with pytest.raises(UnansweredError, match="rejected: no response by 20"):
        Approvals(stage.project.store).decide("v1", "approved", by="anna", now=NOW)


def test_an_approval_after_the_deadline_is_refused(stage: Stage) -> None:
    """The request alone knows its deadline."""
    asked = ask(stage, wait=60)
    approvals = Approvals(stage.project.store)

    with pytest.raises(UnansweredError):
        approvals.decide("v1", "approved", by="anna", now=asked.deadline)

    assert approvals.get("v1").state == "timed out"


def test_the_first_decision_counts(stage: Stage) -> None:
    """The second is told who made the first; the same again is no error."""
    ask(stage)
    approvals = Approvals(stage.project.store)
    approvals.decide("v1", "rejected", by="anna", comment="the prices", now=NOW)

    with pytest.raises(
        DecidedError, match=r"rejected by anna .name not verified. at .*: the prices"
    ):
        approvals.decide("v1", "approved", by="bob", now=NOW)
    assert approvals.decide("v1", "rejected", by="bob", now=NOW).decided_by == "anna"
    assert ask(stage).state == "rejected"


def test_one_of_many_concurrent_decisions_counts(stage: Stage) -> None:
    """Compare-and-swap: all others are told."""
    ask(stage)
    outcomes: list[str] = []
    together = threading.Barrier(8)

    def decide(decision: Any, by: str) -> None:
        together.wait()
        try:
            found = Approvals(stage.project.store).decide("v1", decision, by=by, now=NOW)
            outcomes.append(found.decided_by)
        except DecidedError as error:
            outcomes.append(str(error).partition(" by ")[2].partition(" ")[0])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decide, ("approved", "rejected") * 4, [f"p{n}" for n in range(8)]))

    assert len(outcomes) == 8
    assert set(outcomes) == {Approvals(stage.project.store).get("v1").decided_by}


def test_a_killed_wait_can_be_resumed(stage: Stage) -> None:
    """Asking again while it is pending waits on; the first asker's word stands."""
    first = ask(stage, wait=60)

    again = ask(stage, wait=120)

    assert (again.state, again.requested_at) == ("pending", first.requested_at)
    assert again.deadline > first.deadline


def test_a_rejection_shortens_the_expiry(stage: Stage) -> None:
    """Nobody wants it any more; it may still be looked at for a moment."""
    stage.add("short", V1, ttl=30)
    asked = ask(stage, "short", wait=3600)
    Approvals(stage.project.store).decide("short", "rejected", by="anna", now=NOW)

    approving.await_decision(stage.ledger, asked)

    expires = stage.get("short").expires_at
    assert expires is not None
    assert timedelta(minutes=4) < expires - datetime.now(UTC) <= timedelta(minutes=5)


def test_an_environment_that_stops_is_rejected(stage: Stage) -> None:
    """There is nothing left to look at, and it says so."""
    asked = ask(stage)
    (stage.folder / "served" / "v1.json").unlink()

    found = approving.await_decision(stage.ledger, asked)

    assert found.state == "rejected"
    assert "the environment has stopped" in found.comment


def test_an_unreachable_store_is_retried(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person may take hours; a network does not last that long."""
    asked = ask(stage)
    real = stage.project.store.read

    def away(path: str) -> Any:
        raise StoreError("no route")

    def back(_: float) -> None:
        monkeypatch.setattr(stage.project.store, "read", real)
        Approvals(stage.project.store).decide("v1", "approved", by="anna", now=datetime.now(UTC))

    monkeypatch.setattr(stage.project.store, "read", away)
    assert approving.await_decision(stage.ledger, asked, pause=back).state == "approved"


def test_an_approval_is_found_by_id_prefix(stage: Stage) -> None:
    """As environments are."""
    approvals = Approvals(stage.project.store)
    ask(stage, "v1")
    ask(stage, "v2")

    assert approvals.get("v1").environment == "v1"
    with pytest.raises(NothingMatchedError, match="is ambiguous: v1, v2"):
        approvals.get("v")
    with pytest.raises(NothingMatchedError, match="approval request x1"):
        approvals.get("x1")


# -- what a promotion requires ---------------------------------------------------------------------


def passed(stage: Stage, id: str = "v1", **changes: Any) -> None:
    """Record how a stage came out for an environment's image."""
    image = stage.get(id).image
    assert image is not None
    record = {
        "stage": "tests",
        "run": "r1",
        "image": image.key,
        "digest": image.digest or "",
        "tests": {"passed": 3},
        "exit_status": 0,
        "finished_at": NOW,
        "revision": "0123abc",
    }
    stages.record(stage.project.store, Passed(**{**record, **changes}))


def check(stage: Stage) -> requirements.Evidence:
    return requirements.check(stage.project.store, stage.promotion, stage.get("v1"))


def test_a_stage_counts_only_for_its_digest(stage: Stage) -> None:
    """Two bakes of the same inputs may differ: the key is the same, the digest is not."""
    passed(stage, digest="sha256:" + "ab" * 32)
    passed(stage, run="r2", digest="")  # of a version that recorded no digest

    with pytest.raises(PromotionError, match="'tests' has not tested it"):
        check(stage)


def test_all_missing_requirements_are_listed(stage: Stage) -> None:
    """With what to do about each."""
    with pytest.raises(PromotionError) as caught:
        check(stage)

    said = str(caught.value)
    assert "stage 'tests' has not tested it: pytest --ephemeral-stage tests" in said
    assert "which was not requested: pytest-ephemeral approval request v1" in said


def test_the_evidence_has_all_requirements(stage: Stage) -> None:
    """Which run, whose yes, which revision."""
    passed(stage)
    ask(stage)
    Approvals(stage.project.store).decide("v1", "approved", by="anna", now=NOW)

    found = check(stage)

    assert found.stages["tests"].run == "r1"
    assert found.approval is not None
    assert found.approval.decided_by == "anna"
    assert found.revision == "0123abc"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"exit_status": 1}, "failed"),
        ({"tests": {"skipped": 3}}, "ran no test that passed"),
    ],
)
def test_only_the_latest_stage_result_counts(stage: Stage, changes: Any, said: str) -> None:
    """An earlier pass does not count against a later failure."""
    passed(stage, finished_at=NOW - timedelta(hours=1), run="r0")
    passed(stage, **changes)

    with pytest.raises(PromotionError, match=said):
        check(stage)


def test_only_an_approved_request_counts(stage: Stage) -> None:
    """It is said which."""
    passed(stage)
    ask(stage)
    with pytest.raises(PromotionError, match="waits for a decision"):
        check(stage)
    Approvals(stage.project.store).decide("v1", "rejected", by="anna", now=NOW)
    with pytest.raises(PromotionError, match="rejected by anna"):
        check(stage)


def test_an_approval_counts_only_for_its_environment(stage: Stage, tmp_path: Path) -> None:
    """Though its id begins the same."""
    passed(stage)
    stage.add("v1b", V1)
    ask(stage, "v1b")
    Approvals(stage.project.store).decide("v1b", "approved", by="anna", now=NOW)

    with pytest.raises(PromotionError, match="exactly this environment"):
        check(stage)
