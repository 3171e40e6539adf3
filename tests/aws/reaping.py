"""Helpers that make environments without an owner, and reap them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from aws.conftest import Bench
from pytest_ephemeral import labels, machine, providers
from pytest_ephemeral.environments import reaper
from pytest_ephemeral.environments.reaper import Reaped
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.ec2 import tags
from pytest_ephemeral.tables import Ready

PAST = (datetime.now(UTC) - timedelta(hours=1)).isoformat(timespec="seconds")


FUTURE = (datetime.now(UTC) + timedelta(hours=1)).isoformat(timespec="seconds")


#: A dead process of this machine, and a process of another machine, whose state is unknown.
DEAD = machine.process_of(msgspec.structs.replace(machine.this_owner(""), started="0", pid=1))


ELSEWHERE = machine.process_of(msgspec.structs.replace(machine.this_owner(""), machine="elsewhere"))


def bring_up(bench: Bench, **keys: Any) -> Environment:
    """Bring up an environment in which nothing runs."""
    template = bench.template(**{"command": None, "ready": Ready(), **keys})
    return bench.lifecycle.bring_up(template).environment


def launch_unrecorded(bench: Bench, expires: str = PAST, **keys: Any) -> Environment:
    """Launch an environment and remove its record; its tags have the given expiry."""
    environment = bring_up(bench, **keys)
    bench.ledger.remove(environment.id)
    retag(bench, environment, expires)
    return environment


def retag(bench: Bench, environment: Environment, expires: str) -> None:
    bench.account.ec2.create_tags(
        Resources=environment.handle["instances"].split(","),
        Tags=[{"Key": labels.EXPIRES, "Value": expires}],
    )


def reap(bench: Bench, **keys: Any) -> dict[str, Reaped]:
    found = reaper.reap(bench, dry_run=False, **keys)  # type: ignore[arg-type]
    return {one.id: one for one in found}


def is_up(bench: Bench, environment: Environment) -> bool:
    ids = environment.handle["instances"].split(",")
    found = bench.account.ec2.describe_instances(InstanceIds=ids)["Reservations"]
    states = {one["State"]["Name"] for each in found for one in each["Instances"]}
    return states <= {"pending", "running"}  # an instance is pending until it has booted


def finish_test(bench: Bench, environment: Environment) -> None:
    """Destroy a test's environment, and remove its record."""
    providers.load("ec2").destroy(environment)
    bench.ledger.remove(environment.id)


def mark_baker_dead(bench: Bench, ami: str) -> None:
    """Change the tags of an AMI and its snapshot: the process that baked it is dead."""
    (found,) = bench.account.ec2.describe_images(ImageIds=[ami])["Images"]
    (snapshot,) = [one["Ebs"]["SnapshotId"] for one in found["BlockDeviceMappings"]]
    dead = [{"Key": tags.PROCESS, "Value": DEAD}]
    bench.account.ec2.create_tags(Resources=[ami, snapshot], Tags=dead)
