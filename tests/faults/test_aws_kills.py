"""Reap removes all that a bake, launch or destroy leaves when killed at any API call."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from aws.conftest import Bench, quick
from aws.harness import account
from aws.kills import at_every, by_chance, count_calls, kill_runs
from pytest_ephemeral.environments import reaper
from support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and loopback addresses")


@pytest.mark.parametrize("kind", ["standing_by", "baking", "stacking"])
def test_one_reap_cleans_up_after_a_kill_at_every_call(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of run is killed around every call that changes something.

    A kill comes after the call, and also before it if the run has written anything since the
    previous one. The kinds are launches with an instance on standby, bakes with copies, and stacks.

    Verified images without a record are removed in every region; recorded ones stay. An instance
    on standby stays until its expiry.
    """
    with account(real=False) as made:
        for name, value in made.variables.items():
            monkeypatch.setenv(name, value)
        quick(monkeypatch, every=0.02)
        # AWS describes what has ended for an hour; if it is forgotten sooner, it is waited for.
        # All other changes take effect at once, as they would have long before a reap.
        made.tell("times", boot=0.0, end=0.0, ami=0.0, root=0.0, remembered=3600.0)
        calls = count_calls(made, tmp_path, kind)
        # A bake writes to the store once its image is verified: in the second half of its calls.
        deaths = at_every(calls, writing=calls // 2 if kind == "baking" else 1)
        deaths += by_chance(4, seed=7, calls=calls)
        ends = kill_runs(made, tmp_path, kind, deaths)
        assert ends == {"killed": len(deaths)}
        bench = Bench(made, tmp_path)
        for one in bench.ledger.entries():
            if one.state == "standby":  # its owner was not killed, so let it expire
                bench.ledger.change(one.id, expires_at=datetime.now(UTC))
        reaped = reaper.reap(bench, dry_run=False)  # type: ignore[arg-type]
        assert [one for one in reaped if one.error or one.spared] == []
        until(lambda: made.left() == [])
        assert bench.ledger.entries() == []
        recorded = {image.key for image in bench.images.catalog.entries()}
        assert set(made.verified().values()) <= recorded
