"""Runs that bake, copy, launch, destroy and prune, each killed at an API call."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from aws.harness import TESTS, Account

#: Calls that change something. A kill during a reading call equals one before the next change.
CHANGING = "(?!Describe|Get|List|Head).*"


@dataclass(frozen=True)
class Death:
    """The point at which a run is killed.

    Attributes:
        after: The number of changing calls before it.
        late: Whether the next call takes effect, and only its answer is lost.
        lost: The number of changing calls before one whose answer is lost while the run goes on.
    """

    after: int
    late: bool
    lost: int | None = None


def by_chance(number: int, seed: int, calls: int) -> list[Death]:
    """Choose random calls to die at; every third death follows a lost answer."""
    chance = random.Random(seed)
    found = []
    for run in range(number):
        after = chance.randrange(calls)
        lost = chance.randrange(after + 1) if run % 3 == 0 else None
        found.append(Death(after, chance.random() < 0.5, lost))
    return found


def at_every(calls: int, writing: int = 1) -> list[Death]:
    """Return deaths after every call, before the first, and before each from ``writing`` on.

    Before call number ``writing``, a run writes nothing to the store between two calls, so a death
    before a call leaves the same as a death after the previous one.
    """
    before = [Death(after, late=False) for after in range(calls) if not 0 < after < writing]
    return [*before, *(Death(after, late=True) for after in range(calls))]


@contextmanager
def victims(account: Account, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the process that forks the runs; all of them share ``store`` in the folder."""
    with subprocess.Popen(
        [sys.executable, "-m", "aws.victim", str(folder), account.known()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **account.variables, "PYTHONPATH": str(TESTS)},
    ) as parent:
        yield parent
        _pipe(parent.stdin).close()


def count_calls(account: Account, folder: Path, kind: str) -> int:
    """Count the changing calls of a second run that is not killed."""
    with victims(account, folder) as parent:
        for name in ("first", "second"):
            _begin(parent, f"{kind}-{name} {kind}")
            account.calls()
            os.kill(int(_pipe(parent.stdout).readline()), signal.SIGCONT)
            assert int(_pipe(parent.stdout).readline()) == 0
    return sum(not name.partition(":")[2].startswith(_LOOKING) for name in account.calls())


def kill_runs(account: Account, folder: Path, kind: str, deaths: Sequence[Death]) -> Counter[str]:
    """Start runs one after the other and kill each; count how they ended.

    Args:
        account: A simulated account whose instances run nothing.
        folder: The folder of the runs.
        kind: What the runs do; see ``aws.victim``.
        deaths: One for each run.
    """
    ends: Counter[str] = Counter()
    with victims(account, folder) as parent:
        for number, death in enumerate(deaths):
            _begin(parent, f"{kind}-{number} {kind}")
            pid = int(_pipe(parent.stdout).readline())
            _arrange(account, pid, death)
            os.kill(pid, signal.SIGCONT)
            status = int(_pipe(parent.stdout).readline())
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            ends["killed" if killed else "spared" if status == 0 else "failed"] += 1
    account.tell("faults")
    return ends


_LOOKING = ("Describe", "Get", "List", "Head")


def _arrange(account: Account, pid: int, death: Death) -> None:
    account.tell("faults")
    fate = {"action": CHANGING, "times": 1, "code": ""}
    account.tell("fault", kind="kill", pid=pid, late=death.late, after=death.after, **fate)
    if death.lost is not None:
        account.tell("fault", kind="lost", after=death.lost, **fate)


def _begin(parent: subprocess.Popen[str], line: str) -> None:
    print(line, file=_pipe(parent.stdin), flush=True)


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
