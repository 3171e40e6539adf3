"""Instances are terminated soon after pytest ends, in whatever way it ends."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from aws.conftest import Bench
from aws.harness import account
from aws.project import Project
from support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and loopback addresses")

WAITS = """\
import time
from pathlib import Path

def test_waits(ephemeral_env):
    Path("waiting").touch()
    while not Path("go-on").exists():
        time.sleep(0.02)
"""


@pytest.mark.parametrize(
    ("end", "destroying"),
    [(signal.SIGKILL, False), (signal.SIGKILL, True), (signal.SIGINT, True)],
    ids=["killed while up", "killed while destroying", "interrupted while destroying"],
)
def test_the_owner_process_cleans_up_after_pytest_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: signal.Signals, destroying: bool
) -> None:
    """Instances, their security group and the record are removed without a reap."""
    with account(real=True) as made:
        for name, value in made.variables.items():
            monkeypatch.setenv(name, value)
        made.tell("times", boot=0.05, end=0.05, ami=0.05)
        bench = Bench(made, tmp_path)
        project = Project(bench)
        (project.folder / "test_suite.py").write_text(WAITS)
        monkeypatch.setenv("CI", "true")  # on CI the removal is waited for
        process = project.start("pytest", "--ephemeral-env")
        with process:
            until((project.folder / "waiting").exists, within=120)
            made.tell("times", end=2.0)
            if destroying:
                (project.folder / "go-on").touch()
                until(lambda: any("shutting-down" in one for one in made.left()))
            process.send_signal(end)
            process.communicate(timeout=60)
            assert process.returncode != 0

        until(lambda: bench.ledger.entries() == [], within=60)
        left = [one for one in made.left() if not one.startswith(("ami-", "snap-"))]
        assert left == []
