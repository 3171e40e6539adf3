"""Forks the runs that tests kill, so that a hundred of them import the package only once.

``python -m aws.victim FOLDER KNOWN`` reads a run's name and kind from each line of standard input.
The child stops itself until the test has arranged its death; at the end its status is printed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import zlib
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from aws.conftest import Bench, quick
from aws.harness import COPIES, REGION, Known
from pytest_ephemeral import aws, providers
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.environments.orders import make_order, register_environment
from pytest_ephemeral.providers.cloudformation.tables import StackTemplate
from pytest_ephemeral.tables import Ready
from support.waiting import until

STACK = {
    "Resources": {"Topic": {"Type": "AWS::SNS::Topic", "Properties": {}}},
    "Outputs": {"Host": {"Value": "127.0.0.1"}},
}


def whole(bench: Bench) -> None:
    """Bake, launch, destroy."""
    # Instances run nothing here, so "ready" has no probe.
    timed = bench.lifecycle.bring_up(bench.template(command=None, ready=Ready()))
    bench.lifecycle.destroy(timed.environment)


def launching(bench: Bench) -> None:
    """Launch from the image that the first of these runs bakes, and destroy."""
    bench.keys["install"] = ["echo shared"]
    whole(bench)


def standing_by(bench: Bench) -> None:
    """Launch, keep the instance on standby, start it for the next environment, and destroy that."""
    bench.keys["install"] = ["echo shared"]
    # The volume's size is this run's own, so that instances of other runs do not fit.
    size = 20 + zlib.crc32(bench.folder.name.encode()) % 10000
    template = bench.template(command=None, ready=Ready(), standby=1, volume_size=size)
    one = bench.lifecycle.bring_up(template).environment
    id = one.handle["instances"]

    def is_(state: str) -> bool:
        found = aws.client("ec2").describe_instances(InstanceIds=[id])
        return bool(found["Reservations"][0]["Instances"][0]["State"]["Name"] == state)

    until(lambda: is_("running"))
    assert bench.lifecycle.keep_machine(one)
    until(lambda: is_("stopped"))
    other = bench.lifecycle.bring_up(template).environment
    assert other.handle["instances"] == id
    bench.lifecycle.destroy(other)


def baking(bench: Bench) -> None:
    """Bake, copy to another region, and prune."""
    image = bench.bake(copy_to=[COPIES])
    others = [one.key for one in bench.images.catalog.entries() if one.key != image.key]
    assert bench.images.prune(0, others) == [image]


def stacking(bench: Bench) -> None:
    """Make a stack, and delete it."""
    (bench.folder / "stack.json").write_text(json.dumps(STACK))
    template = StackTemplate(name="stack", file="stack.json", url="http://{output:Host}")
    project: Any = bench
    environment = register_environment(project, bench.lifecycle.run, template, {}, template.ttl)
    journal = bench.lifecycle._record
    order = make_order(project, environment, template, {}, lambda one: journal(one, "handle"))
    bench.lifecycle.destroy(providers.load("cloudformation").launch(order))


KINDS: Mapping[str, Callable[[Bench], None]] = {
    "whole": whole,
    "launching": launching,
    "baking": baking,
    "stacking": stacking,
    "standing_by": standing_by,
}


def make_clients() -> None:
    """Make the clients of all runs once, as this takes longer than most runs."""
    aws.client("ec2", REGION)
    (session,) = aws._sessions.values()
    make = cache(partial(aws._create, session))
    for polls in (False, True):
        for service, region in (("ec2", REGION), ("ec2", COPIES), ("cloudformation", REGION)):
            make(service, region, polls=polls)
    make("sts", REGION, polls=False)
    aws._create = lambda _, *asked, **polls: make(*asked, **polls)


def main(folder: Path, known: Known) -> None:
    """Fork a run for each line of standard input."""
    make_clients()
    for line in sys.stdin:
        name, kind = line.split()
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            run(folder / name, known, KINDS[kind])
        _, status = os.waitpid(child, os.WUNTRACED)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(status, flush=True)


def run(folder: Path, known: Known, what: Callable[[Bench], None]) -> None:
    """Do a run in this process, and exit."""
    os.environ["PYTEST_EPHEMERAL_STATE"] = str(folder / "state")
    folder.mkdir()
    try:
        quick(pytest.MonkeyPatch(), every=0.02)
        bench = Bench(known, folder, store=folder.parent / "store")
        bench.keys = {"install": [f"echo {folder.name}"], "artifact": None, "verify": []}
        # No watchdog, which would clean up at once: the tests are about reap.
        Lifecycle._guard = lambda _: None  # type: ignore[method-assign]
        what(bench)
    except BaseException as error:  # noqa: BLE001
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Known.of(sys.argv[2]))
