"""Promotion: the order of its steps, and what holds at every point."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_ephemeral import labels
from pytest_ephemeral.errors import NothingMatchedError, PromotionError
from pytest_ephemeral.models import ImageReference
from pytest_ephemeral.promotion import journal
from pytest_ephemeral.promotion.journal import Journal
from support.promotion import NAME, V1, V2, Site, Stage

STEPS = [
    "disarm",
    "journal",
    "lower-ttl",
    "check",
    "switch",
    "propagate",
    "verify",
    "record",
    "retire",
]


def test_the_first_promotion_creates_the_record(make_stage: Callable[..., Stage]) -> None:
    """v1 never expires from then on, by its record and by its provider."""
    stage = make_stage()

    entry = stage.promoter().promote("v1")

    assert entry is not None
    assert entry.outcome == "done"
    assert [done.step for done in entry.steps] == STEPS
    assert stage.addresses() == [V1]
    v1 = stage.get("v1")
    assert (v1.production, v1.expires_at, v1.kept) == ("production", None, True)
    assert stage.provider_state("v1") == {"expires": labels.NEVER, "kept": True, "ended": False}
    assert stage.published == [("v1", f"http://{NAME}:{stage.port}/")]


def test_the_next_promotion_retires_the_previous_one(stage: Stage) -> None:
    """v2 is production; v1 expires after ``drain`` and ``keep-old``, and not before."""
    before = datetime.now(UTC)

    stage.promoter().promote("v2")

    assert stage.addresses() == [V2]
    assert stage.find_production() == ["v2"]
    expires = stage.get("v1").expires_at
    assert expires is not None
    assert timedelta(0) <= expires - before - timedelta(seconds=660) < timedelta(seconds=30)
    assert stage.provider_state("v1")["expires"] == str(expires)


def test_a_forged_journal_does_not_expire_another_production(stage: Stage) -> None:
    """The forged record names the environment of another promotion, which gets no expiry."""
    stage.add("other", V2, production="shop-eu", expires_at=None)
    forged = Journal(stage.project.store, "production")
    assert forged.head.current is not None
    current = msgspec.structs.replace(forged.head.current, environment="other")
    forged._write(msgspec.structs.replace(forged.head, current=current))

    entry = stage.promoter().promote("v2")

    assert entry is not None
    assert entry.steps[-1].detail == "other is shop-eu, and not production: left as it is"
    other = stage.get("other")
    assert (other.production, other.expires_at) == ("shop-eu", None)


def test_promoting_production_again_does_nothing(stage: Stage) -> None:
    """The history gets no further entry."""
    assert stage.promoter().promote("v1") is None
    assert len(journal.history(stage.project.store, "production")) == 1


def test_production_stays_until_the_new_one_is_verified(stage: Stage) -> None:
    """At every point before that, v1 is production and never expires."""
    seen = {}

    def look(point: str) -> None:
        word = stage.provider_state("v1")["expires"]
        seen[point] = (
            stage.find_production(),
            word,
            stage.provider_state("v2")["expires"],
            stage.addresses(),
        )

    stage.promoter(checkpoint=look).promote("v2")

    for point, (marked, v1, v2, addresses) in seen.items():
        if point == "retire: done":
            continue
        assert marked == ["v1"], point
        assert v1 == labels.NEVER, point
        if addresses == [V2]:
            assert v2 == labels.NEVER, point
    assert seen["switch: begun"][3] == [V1]
    assert seen["switch: begun"][2] == labels.NEVER
    assert seen["switch: moved"][3] == [V2]


def test_a_failed_verification_is_undone(stage: Stage, served: dict[str, Site]) -> None:
    """v1 stays production, v2 gets an expiry again, and the history has the reason."""
    served["v2"].refuses = stage.when_live("v2")

    with pytest.raises(PromotionError, match=r"is unchanged.*status 503"):
        stage.promoter().promote("v2")

    assert stage.addresses() == [V1]
    assert stage.find_production() == ["v1"]
    assert stage.provider_state("v1")["expires"] == labels.NEVER
    assert stage.get("v2").expires_at is not None
    last = journal.history(stage.project.store, "production")[-1]
    assert (last.outcome, last.target.environment) == ("undone", "v2")
    assert "503" in last.reason
    assert [done.step for done in last.steps][-2:] == ["restore", "rearm"]


def test_a_failed_direct_check_changes_no_record(stage: Stage, served: dict[str, Site]) -> None:
    """The environment is checked before the switch."""
    served["v2"].healthy = False
    moved = []

    with pytest.raises(PromotionError, match="503"):
        stage.promoter(checkpoint=moved.append).promote("v2")

    assert "switch: begun" not in moved
    assert stage.addresses() == [V1]


def test_a_rejected_host_name_changes_no_record(stage: Stage, served: dict[str, Site]) -> None:
    """The check uses the production name before any client does."""
    served["v2"].refuses = lambda asked: asked == NAME
    moved: list[str] = []

    with pytest.raises(PromotionError, match="503"):
        stage.promoter(checkpoint=moved.append).promote("v2")

    assert "switch: begun" not in moved


def test_a_wildcard_is_checked_under_a_concrete_name(
    make_stage: Callable[..., Stage], served: dict[str, Site]
) -> None:
    """``*`` is not a host name: applications reject it, and no browser opens its URL."""
    made, seen = make_stage(record="*.example.test"), set[str]()
    served["v1"].refuses = lambda asked: bool(seen.add(asked))
    made.promoter().promote("v1")
    assert seen == {V1, "www.example.test"}
    assert made.published == [("v1", f"http://www.example.test:{made.port}/")]
    assert V1 in made.addresses()


def test_a_stop_before_the_switch_changes_no_record(stage: Stage) -> None:
    """The environment must run at the switch, even if it passed its check."""

    def die(point: str) -> None:
        if point == "check: done":
            (stage.folder / "served" / "v2.json").unlink()

    with pytest.raises(PromotionError, match="v2 stopped by itself"):
        stage.promoter(checkpoint=die).promote("v2")

    assert stage.addresses() == [V1]
    assert stage.provider_state("v1")["expires"] == labels.NEVER
    assert Journal(stage.project.store, "production").head.run is None


def test_a_stop_after_the_switch_restores_the_record(stage: Stage, served: dict[str, Site]) -> None:
    """The name must not point to an environment that has stopped."""

    def die(point: str) -> None:
        if point == "switch: done":
            served["v2"].stop()
            (stage.folder / "served" / "v2.json").unlink()

    with pytest.raises(PromotionError, match="v2 stopped"):
        stage.promoter(checkpoint=die).promote("v2")

    assert stage.addresses() == [V1]


def test_a_record_changed_by_others_is_not_replaced(stage: Stage) -> None:
    """The error shows the current record, and the one that the last promotion left."""
    (stage.folder / "hosts").write_text(f"127.9.9.9 {NAME}\n")

    with pytest.raises(PromotionError, match=rf"A 127.9.9.9, .*left A {V1}.*--accept-record"):
        stage.promoter().promote("v2")

    assert stage.addresses() == ["127.9.9.9"]
    assert stage.get("v2").expires_at is not None


def test_a_record_changed_during_the_promotion_is_not_replaced(stage: Stage) -> None:
    """The update is a compare-and-swap."""

    def meddle(point: str) -> None:
        if point == "switch: begun":
            (stage.folder / "hosts").write_text(f"127.9.9.9 {NAME}\n")

    with pytest.raises(PromotionError, match="someone else changed"):
        stage.promoter(checkpoint=meddle).promote("v2")

    assert stage.addresses() == ["127.9.9.9"]


def test_a_changed_record_can_be_accepted(stage: Stage) -> None:
    """With ``accept``, the promotion starts from the current record."""
    (stage.folder / "hosts").write_text(f"127.9.9.9 {NAME}\n")

    stage.promoter(accept=True).promote("v2")

    assert stage.addresses() == [V2]


def test_a_different_port_is_refused(stage: Stage) -> None:
    """A DNS name has no port, and clients use the old one."""
    stage.port += 1
    stage.add("v3", "127.77.0.3")

    with pytest.raises(PromotionError, match="clients know production as"):
        stage.promoter().promote("v3")


def test_only_a_ready_environment_can_be_promoted(make_stage: Callable[..., Stage]) -> None:
    """An environment that is still being launched is refused, and so is an unknown one."""
    stage = make_stage()
    stage.add("v3", "127.77.0.3", state="launching")

    with pytest.raises(PromotionError, match="not up"):
        stage.promoter().promote("v3")
    with pytest.raises(NothingMatchedError):
        stage.promoter().promote("v4")


def test_an_expiry_that_stays_on_stops_the_promotion(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider must report that the expiry is off."""
    monkeypatch.setattr("support.promotion.ServedProvider.extend", lambda *_: None)

    with pytest.raises(PromotionError, match="may still end by itself"):
        stage.promoter().promote("v2")

    assert stage.addresses() == [V1]


def test_the_plan_changes_nothing(stage: Stage, tmp_path: Path) -> None:
    """The plan has each step, and fails where the promotion would be refused."""
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    plan = stage.promoter().plan("v2")

    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert f"change {NAME} from A {V1} to A {V2}" in plan
    assert stage.promoter().plan("v1") == []
    with pytest.raises(PromotionError, match="lacks"):
        stage.promoter(promotion=_requiring(stage, "tests")).plan("v2")


def test_history_has_the_person_the_image_and_the_time(stage: Stage) -> None:
    """Entries are ordered from the oldest to the newest."""
    stage.promoter().promote("v2")

    first, second = journal.history(stage.project.store, "production")

    assert (first.target.environment, second.target.environment) == ("v1", "v2")
    assert second.before is not None
    assert second.before.environment == "v1"
    assert "@" in second.by
    assert first.started_at < second.started_at <= datetime.now(UTC)
    assert isinstance(second.target.image, ImageReference)


def _requiring(stage: Stage, *requires: str) -> Any:
    import msgspec

    return msgspec.structs.replace(stage.promotion, requires=list(requires))
