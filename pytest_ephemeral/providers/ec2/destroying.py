"""Ending one environment: its instances, then their group, however far its launch had come."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from pytest_ephemeral import aws, labels
from pytest_ephemeral.errors import DestroyError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.ec2 import (
    belongings,
    identity,
    ingress,
    launching,
    refusals,
    sweeping,
)
from pytest_ephemeral.providers.ec2.fleet import UNSEEN, Fleet, Instance, state

#: In a handle.
INSTANCES: Final = "instances"
GROUP: Final = "group"

#: Of an instance whose end has begun: whoever ends it looks after its group as well.
_ENDING: Final = frozenset({"shutting-down", "terminated"})

#: Between tries to end an instance that is not visible yet.
_PAUSE: Final = 1.0


def destroy(fleet: Fleet, environment: Environment) -> None:
    """Remove all of an environment.

    Args:
        fleet: Of its region.
        environment: Up, half-made, or gone already.

    Raises:
        DestroyError: Something remains; says what.
        TamperedRecordError: The record names what is not the environment's. Nothing was removed.
        ElsewhereError: It is in another account. Nothing was removed.
    """
    ids, groups = _ids(fleet, environment), _groups(fleet, environment)
    if ids:
        _end(fleet, environment, ids)
    for group in groups:
        fleet.ingress.leave(environment, group, lambda: _is_shared(fleet, environment, group))  # noqa: B023 - called at once


def _ids(fleet: Fleet, environment: Environment) -> list[str]:
    """All its instances: recorded, or found by what is recorded, or by their tags."""
    if recorded := environment.handle.get(INSTANCES):
        ids = recorded.split(",")
        identity.check_instances(fleet, environment, ids)
        return ids

    def find() -> list[str]:
        found = belongings.instances_of(fleet.client, [environment.id])
        return [str(instance["InstanceId"]) for instance in found]

    request = environment.handle.get(launching.REQUEST)
    if not (found := find()) and request:
        identity.check_request(environment, request)
        return launching.replay(fleet.client, request, find, UNSEEN)
    return found


def _groups(fleet: Fleet, environment: Environment) -> list[str]:
    recorded = environment.handle.get(GROUP)
    if recorded is None:
        return ingress.of_run(fleet.client, environment.labels[labels.RUN])
    if not recorded:
        return []  # it joined groups of the user's
    known = fleet.ingress.knows(recorded)
    return [recorded] if known or identity.check_group(fleet.client, environment, recorded) else []


def _is_shared(fleet: Fleet, environment: Environment, group: str) -> bool:
    """Whether instances of other environments are in a group, whose ends come after this one."""
    from botocore.exceptions import ClientError

    try:
        others = fleet.others(environment)
    except ClientError as error:
        if aws.code(error) not in aws.THROTTLED:
            raise
        return False  # then AWS refuses
    ids = {id for one in others if state(one) not in _ENDING for id in belongings.groups_of(one)}
    return group in ids


def _end(fleet: Fleet, environment: Environment, ids: Sequence[str]) -> None:
    known = {one["InstanceId"]: one for one in fleet.known(environment)}
    living = [id for id in ids if id not in known or state(known[id]) != "terminated"]
    if not living:
        return
    _terminate(fleet, environment, living)

    def ended(seen: list[Instance]) -> bool:
        return all(state(one) == "terminated" for one in seen)

    if not fleet.wait(environment, ended, sweeping.ENDING):
        raise sweeping.remaining(environment.id, living, "they are still shutting down")


def _terminate(fleet: Fleet, environment: Environment, ids: Sequence[str]) -> None:
    from botocore.exceptions import ClientError

    young = datetime.now(UTC) - environment.created_at < timedelta(seconds=UNSEEN * 2)
    deadline = time.monotonic() + (UNSEEN if young else 0)
    while True:
        try:
            fleet.end(ids)
        except ClientError as error:
            match aws.code(error):
                case "InvalidInstanceID.NotFound" if time.monotonic() < deadline:
                    # "Not found" may mean not yet: such an instance runs on if it is believed.
                    time.sleep(_PAUSE)
                    continue
                case "InvalidInstanceID.NotFound":
                    return
                case "OperationNotPermitted":
                    _unprotect(fleet, environment, ids)
                    continue
            raise sweeping.remaining(environment.id, list(ids), refusals.told(error)) from error
        return


def _unprotect(fleet: Fleet, environment: Environment, ids: Sequence[str]) -> None:
    """Lift what promotion has put on it, once no name points to it any more.

    Raises:
        DestroyError: One does.
    """
    if environment.production is not None:
        raise DestroyError(
            f"{environment.id} is {environment.production} and protected from termination. "
            f"Promote another first, or: pytest-ephemeral rollback {environment.production}"
        )
    for id in ids:
        fleet.client.modify_instance_attribute(
            InstanceId=id, DisableApiTermination={"Value": False}
        )
