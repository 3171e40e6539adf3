"""The commands of promotion: their output and exit statuses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_ephemeral import cli
from pytest_ephemeral.promotion import journal
from pytest_ephemeral.promotion.approval_records import Approvals
from support.board import BoardStage, fill_board
from support.promotion import NAME, V1, V2, Site
from support.waiting import until

LIVE, WAITING, OTHER = "staging-7f3k2q", "staging-m4x8wd", "staging-c9t2vb"


@pytest.fixture
def stage(served: dict[str, Site], tmp_path: Path) -> BoardStage:
    """A project with environments in all states, and a hosts file of its own."""
    made = fill_board(tmp_path, served)
    served["v2"].refuses = lambda _: False
    (tmp_path / "hosts").rename(tmp_path / "shop" / "hosts")
    return made


@pytest.fixture
def run(
    stage: BoardStage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in the project, and return its exit status, stdout and stderr."""
    monkeypatch.chdir(stage.folder / "shop")

    def run_it(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main(argv)
        out, err = capsys.readouterr()
        return status, out, err

    return run_it


def address(stage: BoardStage) -> str:
    return (stage.folder / "shop" / "hosts").read_text().split()[0]


def test_promote_changes_the_record_and_prints_each_step(run: Any, stage: BoardStage) -> None:
    """The URL goes to stdout, the steps go to stderr."""
    stage.decide(WAITING, "approved", "Anna")

    status, out, err = run("promote", WAITING, "--to", "production")

    assert (status, out) == (0, f"http://{NAME}:{stage.port}/\n")
    assert address(stage) == V2
    assert [line.partition(":")[0] for line in err.splitlines()] == [
        "turning off its expiry",
        "current DNS record",
        "lowering the record's TTL",
        "checking it directly",
        "updating the DNS record",
        "waiting for the authoritative servers",
        "checking it through the name",
        "recording the promotion",
        "scheduling the end of the previous one",
    ]
    assert run("promote", WAITING, "--to", "production")[::2] == (
        0,
        f"{WAITING} is already production\n",
    )


def test_a_dry_run_prints_the_plan(run: Any, stage: BoardStage) -> None:
    """The record is not changed."""
    stage.decide(WAITING, "approved", "Anna")

    status, out, _ = run("promote", WAITING, "--to", "production", "--dry-run")

    assert status == 0
    assert out.splitlines()[0] == f"1. turn off the expiry of {WAITING}, and verify that it is off"
    assert f"change {NAME} from A {V1} to A {V2}" in out
    assert address(stage) == V1


def test_promote_refuses_missing_requirements(run: Any, stage: BoardStage) -> None:
    """The message names all missing requirements."""
    status, _, err = run("promote", WAITING, "--to", "production")
    assert status == 1
    assert "waits for a decision" in err
    status, _, err = run("promote", OTHER, "--to", "production")
    assert status == 1
    assert "stage 'tests' failed" in err
    assert "rejected by Bo Lindqvist" in err


def test_promote_json_has_all_steps(run: Any, stage: BoardStage) -> None:
    """The output is one JSON object."""
    stage.decide(WAITING, "approved", "Anna")

    status, out, _ = run("promote", WAITING, "--to", "production", "--json")

    promoted = json.loads(out)["promoted"]
    assert (status, promoted["outcome"]) == (0, "done")
    assert promoted["target"]["artifact"] == "shop@1.5.0"
    assert promoted["target"]["revision"].startswith("4be71c09")
    assert [step["step"] for step in promoted["steps"]][-1] == "retire"


@pytest.mark.parametrize("verb", [("promote", "x", "--to"), ("rollback",), ("history",)])
def test_an_unknown_promotion_names_the_closest(run: Any, verb: tuple[str]) -> None:
    """An unknown name is a usage error."""
    status, _, err = run(*verb, "produktion")
    assert status == 2
    assert "no promotion 'produktion'. Did you mean 'production'?" in err


def test_rollback_is_recorded_in_the_history(run: Any, stage: BoardStage) -> None:
    """The history has the promotion, the rollback, and an undone promotion."""
    assert run("rollback", "production")[0] == 1  # there is no rollback target
    stage.decide(WAITING, "approved", "Anna")
    run("promote", WAITING, "--to", "production")

    status, out, _ = run("rollback", "production")

    assert (status, out) == (0, f"http://{NAME}:{stage.port}/\n")
    assert address(stage) == V1
    _, out, _ = run("history", "production")
    head, *rows = out.splitlines()
    assert head.split()[:3] == ["WHEN", "WHAT", "ENVIRONMENT"]
    assert [row[21:].split()[0].rstrip(",") for row in rows] == [
        "rollback",
        "promote",
        "promote",
        "promote",
    ]
    assert "shop@1.5.0" in rows[1]
    assert "Anna" in rows[1]
    assert "undone" in rows[2]
    told = json.loads(run("history", "production", "--json")[1])["history"]
    assert [one["kind"] for one in told] == ["promote", "promote", "promote", "rollback"]


def test_an_approval_is_requested_and_decided(run: Any, stage: BoardStage) -> None:
    """The link goes to stdout, the command to approve goes to stderr."""
    stage.add("staging-new222", V1)

    status, out, err = run("approval", "request", "staging-new")

    assert (status, out) == (0, f"http://{V1}:{stage.port}/\n")
    assert "to approve: pytest-ephemeral approve staging-new222" in err
    status, out, _ = run("approve", "staging-new", "--by", "Anna", "--comment", "good")
    assert status == 0
    assert "staging-new222: approved by Anna (name not verified) at" in out
    assert run("approval", "request", "staging-new", "--wait", "1m")[0] == 0
    status, _, err = run("reject", "staging-new", "--by", "Bo")
    assert status == 1
    assert "approved by Anna" in err


@pytest.mark.parametrize(("verb", "expected"), [("approve", 0), ("reject", 4)])
def test_waiting_for_an_approval_ends_with_the_decision(
    run: Any, stage: BoardStage, verb: str, expected: int
) -> None:
    """The exit status is 0 for an approval, and 4 for a rejection."""

    def person() -> None:
        until(lambda: Approvals(stage.project.store).get(WAITING).deadline)
        stage.decide(WAITING, {"approve": "approved", "reject": "rejected"}[verb], "Anna", "so")

    thread = threading.Thread(target=person)
    thread.start()
    status, _, err = run("approval", "request", WAITING, "--wait", "1m")
    thread.join()

    assert status == expected
    assert "by Anna" in err


def test_waiting_without_a_decision_times_out(run: Any, stage: BoardStage) -> None:
    """The exit status is 5, also for an approval that comes too late."""
    stage.add("staging-new222", V1)
    status, out, _ = run("approval", "request", "staging-new222", "--wait", "10ms", "--json")
    assert status == 5
    assert json.loads(out)["approval"]["state"] == "timed out"
    assert run("approve", "staging-new222")[0] == 5


def test_unknown_ids_and_names_are_errors(run: Any, stage: BoardStage) -> None:
    """The exit status is 3."""
    for verb in (
        ("approve", "nothing"),
        ("reject", "nothing"),
        ("approval", "request", "nothing"),
        ("promote", "nothing", "--to", "production"),
    ):
        assert run(*verb)[0] == 3


def test_a_destroyed_environment_can_not_be_approved(run: Any, stage: BoardStage) -> None:
    """An approval that comes too late is refused, and is not recorded."""
    assert run("down", WAITING)[0] == 0
    status, _, err = run("approve", WAITING)
    assert status == 3
    assert "can't be approved: the environment was destroyed" in err
    assert stage.project.store.read(f"approvals/{WAITING}.json").data.count(b'"pending"') == 1


def test_a_record_of_a_destroyed_environment_is_reported(run: Any, stage: BoardStage) -> None:
    """The message names the command that corrects the record."""
    status, _, err = run("down", "staging-7f3k2q", "--production")
    assert status == 0
    assert f"{NAME} still points to the destroyed environment" in err
    assert "pytest-ephemeral rollback production" in err


def test_down_destroys_production_only_on_request(run: Any, stage: BoardStage) -> None:
    """``down --production`` destroys it; ``down ID``, ``down --all`` and ``reap`` do not."""
    status, _, err = run("down", LIVE, OTHER)
    assert status == 1
    assert f"{LIVE} is in production" in err
    assert run("down", "--all")[0] == 0
    assert [one.id for one in stage.ledger.entries()] == [LIVE]
    assert run("reap")[0] == 0
    assert [one.id for one in stage.ledger.entries()] == [LIVE]

    assert run("down", "--production", LIVE)[0] == 0

    assert stage.ledger.entries() == []


def test_list_shows_production(run: Any, stage: BoardStage) -> None:
    """The row also shows that production never expires."""
    _, out, _ = run("list")
    [row] = [line for line in out.splitlines() if line.startswith(LIVE)]
    assert "production" in row
    assert "never" in row


def test_extend_does_not_change_production(run: Any, stage: BoardStage) -> None:
    """Production still never expires."""
    assert run("extend", LIVE, "1h")[0] == 0
    assert stage.get(LIVE).expires_at is None


def test_former_production_is_not_pruned(run: Any, stage: BoardStage) -> None:
    """A rollback and the history need its image; other images are removed."""
    unrelated = stage.bake("0.0.1", minutes=999)
    stage.decide(WAITING, "approved", "Anna")
    assert run("promote", WAITING, "--to", "production")[0] == 0
    promoted = {one.target.image for one in journal.history(stage.project.store, "production")}
    for environment in stage.ledger.entries():
        stage.ledger.remove(environment.id)

    status, out, _ = run("--json", "images", "prune", "--keep", "0")

    assert status == 0
    removed = {image["key"] for image in json.loads(out)["removed"]}
    assert unrelated.key in removed
    assert promoted
    assert not removed & {image.key for image in promoted if image is not None}


def test_an_unreadable_promotion_stops_pruning(run: Any, stage: BoardStage) -> None:
    """An unreadable record may refer to any image."""
    stage.project.store.create("promotions/production/history/broken.json", b"{")

    status, _, err = run("images", "prune", "--keep", "0")

    assert status == 1
    assert "promotions/production/history/broken.json" in err
