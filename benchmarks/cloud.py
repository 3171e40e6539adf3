"""Environments on a simulated AWS: numbers of API calls, delays of polling, and leaks.

No processes run in the simulated instances, except where readiness is measured, so that this
project is measured and not the processes of this machine.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import pytest

from aws.conftest import Bench, quick  # type: ignore[import-not-found]
from aws.harness import Account, account  # type: ignore[import-not-found]
from aws.kills import by_chance, count_calls, kill_runs  # type: ignore[import-not-found]
from pytest_ephemeral import labels, providers
from pytest_ephemeral.environments import reaper
from pytest_ephemeral.models import Environment
from pytest_ephemeral.tables import Ready

AT_ONCE = 200
KILLED = 200
SEEDS = (1,)


def main(at_once: int = AT_ONCE, killed: int = KILLED, *seeds: int) -> None:
    """Run all measurements, and print a line for each."""
    with project(real=False) as (made, bench):
        bench.bake()
        running(bench, made)  # first, as the simulation gets slower with the number of instances
        calls(bench, made, at_once, {"security_groups": own_group(made)}, "joining a group")
        calls(bench, made, at_once, {}, "a group of their own")
    with project(real=False) as (made, bench):
        bench.bake()
        # At most 100, used four times: the network has 500 addresses, each of which is used once.
        reaping(bench, made, min(at_once, 100))
    if shutil.which("curl") is None:
        print("left out: ready, for lack of curl, with which instances read their metadata")
    else:
        with project(real=True) as (_, bench):
            ready(bench)
    for seed in seeds or SEEDS:
        with project(real=False) as (made, bench):
            kills(bench, made, killed, seed)


@contextmanager
def project(*, real: bool) -> Iterator[tuple[Account, Bench]]:
    """A new project in a new account; with ``real``, instances run processes."""
    with (
        account(real=real) as made,
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(providers, "names", lambda: ["ec2", "cloudformation"])
        os.environ.update(made.variables)
        os.environ["PYTEST_EPHEMERAL_STATE"] = folder
        bench = Bench(made, Path(folder))
        bench.keys = {"artifact": None, "install": ["true"], "verify": []}
        yield made, bench


def own_group(made: Account) -> list[str]:
    """Create a security group, as a user has it before."""
    vpc = made.ec2.describe_subnets(SubnetIds=made.subnets[:1])["Subnets"][0]["VpcId"]
    group = made.ec2.create_security_group(GroupName="ours", Description="ours", VpcId=vpc)
    return [str(group["GroupId"])]


def calls(bench: Bench, made: Account, number: int, keys: dict[str, Any], what: str) -> None:
    """Bring up and destroy environments at once: count API calls and remaining resources."""
    made.calls()
    before = len(made.left())
    started = time.monotonic()
    launched = launch(bench, number, **keys)
    with ThreadPoolExecutor(number) as pool:
        list(pool.map(bench.lifecycle.destroy, launched))
    seconds = time.monotonic() - started
    found = Counter(made.calls())
    polls = found.pop("ec2:DescribeInstances", 0)
    each = (sum(found.values()) + polls) / number
    verdict = "reached" if each <= 3 else "MISSED"
    print(
        f"{number} environments at once, {what}: {each:.2f} API calls each (target 3)  {verdict}; "
        f"{polls} looks in {seconds:.0f} s; left: {len(made.left()) - before}"
    )


def launch(bench: Bench, number: int, **keys: Any) -> list[Environment]:
    """Bring up environments at once."""
    # No process runs in the instances, so there is no probe.
    template = bench.template(command=None, ready=Ready(), **keys)
    with ThreadPoolExecutor(number) as pool:
        timed = list(pool.map(lambda _: bench.lifecycle.bring_up(template), range(number)))
    return [one.environment for one in timed]


def reaping(bench: Bench, made: Account, number: int) -> None:
    """Remove leftovers one by one, then by reap; first without records, then with records."""
    provider: Any = providers.load("ec2")

    def one_by_one() -> None:
        for owned in provider.list_owned():
            provider.sweep(owned)

    def reap(at_once: int = reaper.AT_ONCE) -> None:
        found = reaper.reap(bench, dry_run=False, at_once=at_once)
        assert len(found) == number, len(found)

    made.tell("times", boot=0.02, end=0.2)
    for what, recorded, slowly in (("tags", False, one_by_one), ("records", True, lambda: reap(1))):
        taken = []
        for go in (slowly, reap):
            leave(bench, made, number, recorded=recorded)
            made.calls()
            started = time.monotonic()
            with pytest.MonkeyPatch.context() as patch:
                quick(patch)
                go()
            taken.append((time.monotonic() - started, len(made.calls())))
        (before, many), (after, few) = taken
        print(
            f"{number} leftovers by their {what}: reaped in {after:.1f} s with {few} API calls; one"
            f" by one {before:.1f} s with {many}: {before / after:.1f} times as long"
        )


def leave(bench: Bench, made: Account, number: int, *, recorded: bool) -> None:
    """Bring up environments that have expired, with or without records."""
    expired = datetime.now(UTC) - timedelta(hours=1)
    launched = launch(bench, number)
    for one in launched:
        if recorded:
            bench.ledger.change(one.id, expires_at=expired)
        else:
            bench.ledger.remove(one.id)
    if not recorded:
        made.ec2.create_tags(
            Resources=[one.handle["instances"] for one in launched],
            Tags=[{"Key": labels.EXPIRES, "Value": expired.isoformat(timespec="seconds")}],
        )


def running(bench: Bench, made: Account, rounds: int = 8) -> None:
    """The delay between the start of an instance and its detection."""
    from pytest_ephemeral.providers.ec2.instance_watcher import state, watch_region

    late: list[float] = []
    provider = providers.load("ec2")
    for _ in range(rounds):
        made.tell("times", boot=1.0 + 0.3 * len(late))
        environment = bench.lifecycle.bring_up(bench.template(command=None, port=None)).environment
        id = environment.handle["instances"]
        watcher = watch_region(environment.handle["region"])
        watcher.wait(environment, lambda seen: all(state(one) == "running" for one in seen), 30)
        late.append(time.time() - made.tell("facts")[id]["running"])
        provider.destroy(environment)
        bench.ledger.remove(environment.id)
    verdict = "reached" if max(late) <= 2.5 else "MISSED"
    print(f"running seen within {max(late):.2f} s of the fact at most (target 2.5)  {verdict}")


def ready(bench: Bench, rounds: int = 5) -> None:
    """The delay between the start of an application on an instance and the end of ``bring_up``.

    The application prints the time of its start on the console; it has the same clock as this.
    """
    late: list[float] = []
    for number in range(rounds):
        serve = (
            f'sleep 1.{number}; exec "{sys.executable}" -c "import http.server, time; '
            "server = http.server.HTTPServer(('$HOST', $PORT), http.server.SimpleHTTPRequestHandler"
            "); print('answers', time.time(), flush=True); server.serve_forever()\""
        )
        template = bench.template(command=serve, ready=Ready(http="/"))
        environment = bench.lifecycle.bring_up(template).environment
        up = time.time()
        printed = [line for line in environment.logs().splitlines() if "answers" in line]
        late.append(up - float(printed[0].rpartition(" ")[2]))
        bench.lifecycle.destroy(environment)
    verdict = "reached" if max(late) <= 2.5 else "MISSED"
    print(f"ready seen within {max(late):.2f} s of the fact at most (target 2.5)  {verdict}")


def kills(bench: Bench, made: Account, number: int, seed: int) -> None:
    """Kill runs at random API calls, then count what one reap leaves."""
    made.tell("times", boot=0.02, end=0.02, ami=0.02)
    deaths = by_chance(number, seed, count_calls(made, bench.folder, "whole"))
    ends = kill_runs(made, bench.folder, "whole", deaths)
    before = len(made.left())
    with pytest.MonkeyPatch.context() as patch:
        quick(patch, every=0.02)
        reaped = reaper.reap(bench, dry_run=False)
    left = [*made.left(), *(one.error for one in reaped if one.error)]
    verdict = "reached" if not left else f"MISSED: {left}"
    print(
        f"{number} runs, {ends['killed']} killed at random API calls (seed {seed}): {before} things"
        f" were left, {len(reaped)} reaped by one reap, left: {len(left)} (target 0)  {verdict}"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
