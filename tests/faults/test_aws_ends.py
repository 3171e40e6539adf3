"""However the process ends that brought instances up, they end, and soon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aws.conftest import Bench
from aws.harness import TESTS, account
from support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and loopback addresses")


@pytest.mark.parametrize(
    ("end", "destroying"),
    [(signal.SIGKILL, False), (signal.SIGKILL, True), (signal.SIGINT, True)],
    ids=["killed while up", "killed while destroying", "interrupted while destroying"],
)
def test_the_watchdog_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: signal.Signals, destroying: bool
) -> None:
    """Instances and their group are gone, and so is the record, without any reap."""
    with account(real=False) as made:
        for name, value in made.variables.items():
            monkeypatch.setenv(name, value)
        made.tell("times", boot=0.05, end=0.05, ami=0.05)
        bench = Bench(made, tmp_path)
        owner = subprocess.Popen(
            [sys.executable, "-m", "aws.owner", str(tmp_path), made.known()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )
        with owner:
            assert owner.stdin is not None
            assert owner.stdout is not None
            assert owner.stdout.readline() == "up\n"
            made.tell("times", end=2.0)
            if destroying:
                print(file=owner.stdin, flush=True)
                until(lambda: any("shutting-down" in one for one in made.left()))
            owner.send_signal(end)
            assert owner.wait(60) != 0
        until(lambda: bench.ledger.entries() == [], within=60)
        assert made.left() == []
