"""Runs that bake, launch and destroy, each killed at an API call that chance decides."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from aws.harness import TESTS, Account

#: About as many calls as a whole run makes: one killed later than that is spared.
CALLS = 55


def kill_runs(account: Account, folder: Path, number: int, seed: int) -> Counter[str]:
    """Start runs one after the other, and kill each; how they ended.

    Args:
        account: Simulated, hollow.
        folder: Theirs; ``store`` in it is what all of them share.
        number: How many.
        seed: Of chance.
    """
    chance = random.Random(seed)
    ends: Counter[str] = Counter()
    with subprocess.Popen(
        [sys.executable, "-m", "aws.victim", str(folder), account.known()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **account.variables, "PYTHONPATH": str(TESTS)},
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        for run in range(number):
            print(f"run-{run}", file=parent.stdin, flush=True)
            pid = int(parent.stdout.readline())
            account.tell("faults")
            account.tell(
                "fault",
                action=".*",
                kind="kill",
                pid=pid,
                late=chance.random() < 0.5,
                after=chance.randrange(CALLS),
                times=1,
            )
            os.kill(pid, signal.SIGCONT)
            status = int(parent.stdout.readline())
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            ends["killed" if killed else "spared" if status == 0 else "failed"] += 1
        account.tell("faults")
        parent.stdin.close()
    return ends
