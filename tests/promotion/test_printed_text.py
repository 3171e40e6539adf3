"""Text from people is always printed as one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_ephemeral import cli
from pytest_ephemeral.promotion.approval_records import Approvals
from support.board import BoardStage, fill_board
from support.promotion import Site

EVIL = "ok\n##vso[task.setvariable variable=T]x\r::error::y\n\x1b[2J##teamcity[buildStop]"
WAITING = "staging-m4x8wd"


@pytest.fixture
def stage(served: dict[str, Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BoardStage:
    """A project with environments in all states, in the current folder."""
    made = fill_board(tmp_path, served)
    monkeypatch.chdir(tmp_path / "shop")
    return made


def check(printed: str) -> None:
    """Check that no line is a command of a CI server, and none has terminal control codes."""
    assert "\x1b" not in printed
    assert "\r" not in printed
    for line in printed.splitlines():
        assert not line.lstrip().startswith(("::", "##"))
        assert "##vso[" not in line
        assert "##teamcity[" not in line


def forge(stage: BoardStage, id: str, **changes: Any) -> None:
    """Change an approval's record, as anyone can who may write to the store."""
    import msgspec

    path = f"approvals/{id}.json"
    data, version = stage.project.store.read(path)
    record = msgspec.json.decode(data)
    stage.project.store.replace(path, msgspec.json.encode(record | changes), version)


@pytest.mark.parametrize("decision", ["approve", "reject"])
def test_hostile_comments_are_printed_safely(
    stage: BoardStage, capsys: pytest.CaptureFixture[str], decision: str
) -> None:
    """Comments are printed with the decision, with the request, and with a refusal."""
    cli.main([decision, WAITING, "--by", EVIL, "--comment", EVIL])
    cli.main(["approval", "request", WAITING, "--wait", "1s"])
    cli.main(["promote", WAITING, "--to", "production"])
    cli.main(["history", "production"])
    printed = capsys.readouterr()
    check(printed.out)
    check(printed.err)
    assert "name not verified" in printed.out


@pytest.mark.parametrize("state", ["approved", "rejected"])
def test_forged_records_are_printed_safely(
    stage: BoardStage, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    """Text is cleaned when it is printed, not when it is stored."""
    forge(
        stage,
        WAITING,
        state=state,
        decided_by=EVIL,
        comment=EVIL,
        decided_at="2026-11-23T00:00:00Z",
    )
    cli.main(["approve", WAITING])
    cli.main(["approval", "request", WAITING])
    cli.main(["promote", WAITING, "--to", "production"])
    cli.main(["list"])
    cli.main(["images", "list"])
    printed = capsys.readouterr()
    check(printed.out)
    check(printed.err)


def test_a_decision_states_that_the_name_is_not_verified(stage: BoardStage) -> None:
    """Anyone who may write to the store can decide with any name."""
    stage.decide(WAITING, "approved", EVIL, EVIL)
    found = str(Approvals(stage.project.store).get(WAITING))
    assert len(found.splitlines()) == 1
    assert "(name not verified)" in found
