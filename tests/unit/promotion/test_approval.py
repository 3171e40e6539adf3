"""Manual approval: the first decision counts, and no response is a rejection."""

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
    """A project with the running environments v1 and v2."""
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
    """The environment outlives its owner and the wait, and its link is published."""
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
    """An expiry after the deadline stays unchanged."""
    before = stage.get("v1").expires_at
    ask(stage, wait=1)
    assert stage.get("v1").expires_at == before


def test_the_total_wait_for_approval_is_limited(stage: Stage) -> None:
    """The limit holds for one request and for repeated requests together."""
    with pytest.raises(ConfigurationError, match="7d at most"):
        ask(stage, wait=approving.LONGEST_WAIT + 1)
    first = Approvals(stage.project.store)
    then = NOW - timedelta(days=6.5)
    first.request(stage.get("v1"), deadline=then + timedelta(days=1), now=then)

    again = ask(stage, wait=approving.LONGEST_WAIT)

    assert again.deadline == NOW + timedelta(days=0.5)


def test_a_stopped_environment_can_not_be_approved(stage: Stage) -> None:
    """The link would lead to nothing."""
    (stage.folder / "served" / "v1.json").unlink()
    with pytest.raises(NothingMatchedError, match="is not running"):
        ask(stage)


@pytest.mark.parametrize("decision", ["approved", "rejected"])
def test_a_decision_ends_the_wait(stage: Stage, decision: Any) -> None:
    """It can be made on any machine; the person, the time and the comment are kept."""
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
    """Pending and approved requests pass the check; a rejection has exit status 4."""
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
    """It is recorded, so a later approval is refused."""
    asked = ask(stage, wait=60)

    found = approving.await_decision(stage.ledger, asked, now=lambda: asked.deadline)

    assert found.state == "timed out"
    with pytest.raises(UnansweredError) as caught:
        found.check()
    assert caught.value.exit_status == 5
    with pytest.raises(UnansweredError, match="rejected: no response by 20"):
        Approvals(stage.project.store).decide("v1", "approved", by="anna", now=NOW)


def test_an_approval_after_the_deadline_is_refused(stage: Stage) -> None:
    """The request's own deadline decides, even if no process waits for it."""
    asked = ask(stage, wait=60)
    approvals = Approvals(stage.project.store)

    with pytest.raises(UnansweredError):
        approvals.decide("v1", "approved", by="anna", now=asked.deadline)

    assert approvals.get("v1").state == "timed out"


def test_the_first_decision_counts(stage: Stage) -> None:
    """A different second decision is an error that names the first; the same one is not."""
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
    """Compare-and-swap: all other callers get the name of the person who decided."""
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
    """A second request for a pending approval extends the first one."""
    first = ask(stage, wait=60)

    again = ask(stage, wait=120)

    assert (again.state, again.requested_at) == ("pending", first.requested_at)
    assert again.deadline > first.deadline


def test_a_rejection_shortens_the_expiry(stage: Stage) -> None:
    """The environment then has at most 5 minutes left, for a last inspection."""
    stage.add("short", V1, ttl=30)
    asked = ask(stage, "short", wait=3600)
    Approvals(stage.project.store).decide("short", "rejected", by="anna", now=NOW)

    approving.await_decision(stage.ledger, asked)

    expires = stage.get("short").expires_at
    assert expires is not None
    assert timedelta(minutes=4) < expires - datetime.now(UTC) <= timedelta(minutes=5)


def test_an_environment_that_stops_is_rejected(stage: Stage) -> None:
    """It can't be inspected any more, and the comment says why."""
    asked = ask(stage)
    (stage.folder / "served" / "v1.json").unlink()

    found = approving.await_decision(stage.ledger, asked)

    assert found.state == "rejected"
    assert "the environment has stopped" in found.comment


def test_an_unreachable_store_is_retried(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person may take hours, and network failures are usually shorter."""
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
    """Environments are found in the same way."""
    approvals = Approvals(stage.project.store)
    ask(stage, "v1")
    ask(stage, "v2")

    assert approvals.get("v1").environment == "v1"
    with pytest.raises(NothingMatchedError, match="is ambiguous: v1, v2"):
        approvals.get("v")
    with pytest.raises(NothingMatchedError, match="approval request x1"):
        approvals.get("x1")


# -- requirements of a promotion -------------------------------------------------------------------


def passed(stage: Stage, id: str = "v1", **changes: Any) -> None:
    """Record a stage's result for an environment's image."""
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
    """Two bakes of the same inputs have the same key, but may have different digests."""
    passed(stage, digest="sha256:" + "ab" * 32)
    passed(stage, run="r2", digest="")  # a record of an old version, without a digest

    with pytest.raises(PromotionError, match="'tests' has not tested it"):
        check(stage)


def test_all_missing_requirements_are_listed(stage: Stage) -> None:
    """For each, the message has the command to run."""
    with pytest.raises(PromotionError) as caught:
        check(stage)

    said = str(caught.value)
    assert "stage 'tests' has not tested it: pytest --ephemeral-stage tests" in said
    assert "which was not requested: pytest-ephemeral approval request v1" in said


def test_the_evidence_has_all_requirements(stage: Stage) -> None:
    """It has the stage's run, the approval and the revision."""
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
    """A later failure overrides an earlier pass."""
    passed(stage, finished_at=NOW - timedelta(hours=1), run="r0")
    passed(stage, **changes)

    with pytest.raises(PromotionError, match=said):
        check(stage)


def test_only_an_approved_request_counts(stage: Stage) -> None:
    """The message says whether the request is pending or rejected."""
    passed(stage)
    ask(stage)
    with pytest.raises(PromotionError, match="waits for a decision"):
        check(stage)
    Approvals(stage.project.store).decide("v1", "rejected", by="anna", now=NOW)
    with pytest.raises(PromotionError, match="rejected by anna"):
        check(stage)


def test_an_approval_counts_only_for_its_environment(stage: Stage, tmp_path: Path) -> None:
    """An approval for v1b, whose id begins with v1, does not approve v1."""
    passed(stage)
    stage.add("v1b", V1)
    ask(stage, "v1b")
    Approvals(stage.project.store).decide("v1b", "approved", by="anna", now=NOW)

    with pytest.raises(PromotionError, match="exactly this environment"):
        check(stage)
