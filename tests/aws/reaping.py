"""Instances that no run owns any more, and a reaper."""

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


#: A process of this machine that is gone, and one of another of which nobody here can tell.
DEAD = machine.process_of(msgspec.structs.replace(machine.this_owner(""), started="0", pid=1))


ELSEWHERE = machine.process_of(msgspec.structs.replace(machine.this_owner(""), machine="elsewhere"))


def bring_up(bench: Bench, **keys: Any) -> Environment:
    """An environment in which nothing runs."""
    template = bench.template(**{"command": None, "ready": Ready(), **keys})
    return bench.lifecycle.bring_up(template).environment


def launch_unrecorded(bench: Bench, expires: str = PAST, **keys: Any) -> Environment:
    """An environment without a record, whose tags say when it expires."""
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
    return states <= {"pending", "running"}  # launched is not yet booted


def finish_test(bench: Bench, environment: Environment) -> None:
    """Bring a test to its end."""
    providers.load("ec2").destroy(environment)
    bench.ledger.remove(environment.id)


def mark_baker_dead(bench: Bench, ami: str) -> None:
    """The process that has baked an AMI is gone."""
    (found,) = bench.account.ec2.describe_images(ImageIds=[ami])["Images"]
    (snapshot,) = [one["Ebs"]["SnapshotId"] for one in found["BlockDeviceMappings"]]
    dead = [{"Key": tags.PROCESS, "Value": DEAD}]
    bench.account.ec2.create_tags(Resources=[ami, snapshot], Tags=dead)
