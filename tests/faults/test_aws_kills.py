"""Killed at any API call, a bake, a launch or a destroying leaves nothing that reap misses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from aws.conftest import Bench, quick
from aws.harness import account
from aws.kills import kill_runs
from waiting import until

from pytest_ephemeral.environments import reaper

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and loopback addresses")


def test_one_reap_after_random_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve runs; `make bench` has two hundred."""
    with account(real=False) as made:
        for name, value in made.variables.items():
            monkeypatch.setenv(name, value)
        quick(monkeypatch)
        made.tell("times", boot=0.02, end=0.02, ami=0.02)
        ends = kill_runs(made, tmp_path, 12, seed=7)
        assert ends["killed"] > 6
        assert ends["failed"] == 0
        bench = Bench(made, tmp_path)
        reaped = reaper.reap(bench, dry_run=False)  # type: ignore[arg-type]
        assert [one for one in reaped if one.error] == []
        until(lambda: made.left() == [])
        assert bench.ledger.entries() == []
