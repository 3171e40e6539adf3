"""Environments on a simulated AWS: what they cost in API calls, how soon they are seen, and leaks.

Instances are hollow here: nothing runs in them, so that what is measured is this project and not
this machine's processes.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import pytest
from aws.conftest import Bench, quick  # type: ignore[import-not-found]
from aws.harness import Account, account  # type: ignore[import-not-found]
from aws.kills import kill_runs  # type: ignore[import-not-found]

from pytest_ephemeral.environments import reaper
from pytest_ephemeral.tables import Ready

AT_ONCE = 200
KILLED = 200


def main(at_once: int = AT_ONCE, killed: int = KILLED) -> None:
    """Measure, and print a line each."""
    with account(real=False) as made, tempfile.TemporaryDirectory() as folder:
        os.environ.update(made.variables)
        os.environ["PYTEST_EPHEMERAL_STATE"] = folder
        bench = Bench(made, Path(folder))
        with pytest.MonkeyPatch.context() as patch:
            quick(patch)
            bench.keys = {"artifact": None, "install": ["true"], "verify": []}
            bench.bake()
        calls(bench, made, at_once, {"security_groups": own_group(made)}, "joining a group")
        calls(bench, made, at_once, {}, "a group each")
        detection(bench, made)
    with account(real=False) as made, tempfile.TemporaryDirectory() as folder:
        kills(made, Path(folder), killed)


def own_group(made: Account) -> list[str]:
    """A group that is there already."""
    vpc = made.ec2.describe_subnets(SubnetIds=made.subnets[:1])["Subnets"][0]["VpcId"]
    group = made.ec2.create_security_group(GroupName="ours", Description="ours", VpcId=vpc)
    return [str(group["GroupId"])]


def calls(bench: Bench, made: Account, number: int, keys: dict[str, Any], what: str) -> None:
    """So many environments up and down at once: API calls, and what is left.

    With a group each, four are the least: it is made, opened and deleted, and the instance is run.
    """
    made.calls()
    before = len(made.left())
    # Nothing answers in a hollow instance, and nothing is asked: "ready" names no probe.
    template = bench.template(command=None, ready=Ready(), **keys)
    started = time.monotonic()
    with ThreadPoolExecutor(number) as pool:
        timed = list(pool.map(lambda _: bench.lifecycle.bring_up(template), range(number)))
        list(pool.map(lambda one: bench.lifecycle.destroy(one.environment), timed))
    seconds = time.monotonic() - started
    found = Counter(made.calls())
    polls = found.pop("ec2:DescribeInstances", 0)
    each = (sum(found.values()) + polls) / number
    verdict = "reached" if each <= 3 else "MISSED"
    print(
        f"{number} environments at once, {what}: {each:.2f} API calls each (target 3)  {verdict}; "
        f"{polls} looks in {seconds:.0f} s; left: {len(made.left()) - before}"
    )


def detection(bench: Bench, made: Account, rounds: int = 8) -> None:
    """From an instance running to its being seen so."""
    from pytest_ephemeral import providers
    from pytest_ephemeral.providers.ec2.fleet import fleet, state

    late: list[float] = []
    provider = providers.load("ec2")
    for _ in range(rounds):
        made.tell("times", boot=1.0 + 0.3 * len(late))
        environment = bench.lifecycle.bring_up(bench.template(command=None, port=None)).environment
        id = environment.handle["instances"]
        squad = fleet(environment.handle["region"])
        squad.wait(environment, lambda seen: all(state(one) == "running" for one in seen), 30)
        late.append(time.time() - made.tell("facts")[id]["running"])
        provider.destroy(environment)
        bench.ledger.remove(environment.id)
    verdict = "reached" if max(late) <= 2.5 else "MISSED"
    print(f"running seen within {max(late):.2f} s of the fact at most (target 2.5)  {verdict}")


def kills(made: Account, folder: Path, number: int) -> None:
    """Runs killed at random API calls, then one reap."""
    os.environ.update(made.variables)
    made.tell("times", boot=0.02, end=0.02, ami=0.02)
    ends = kill_runs(made, folder, number, seed=1)
    bench = Bench(made, folder)
    with pytest.MonkeyPatch.context() as patch:
        quick(patch, every=0.02)
        reaped = reaper.reap(bench, dry_run=False)
    left = made.left()
    verdict = "reached" if not left else f"MISSED: {left}"
    print(
        f"{number} runs, {ends['killed']} killed at random API calls: {len(reaped)} reaped, "
        f"left: {len(left)} (target 0)  {verdict}"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
