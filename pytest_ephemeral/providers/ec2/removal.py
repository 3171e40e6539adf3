"""Removing environments and bakes: one by its record, or all that carries some ids.

Instances → until they have ended → groups → interfaces and volumes → AMIs → snapshots. Each step
is one look, and one call where AWS takes many at once: two hundred ids cost little more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from pytest_ephemeral import aws, aws_retries, labels
from pytest_ephemeral.errors import DestroyError, EphemeralError, UnavailableError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers import waiting
from pytest_ephemeral.providers.ec2 import (
    identity,
    resources,
    run_instances,
    security_groups,
)
from pytest_ephemeral.providers.ec2.errors import describe_error
from pytest_ephemeral.providers.ec2.instance_watcher import (
    INSTANCES,
    UNSEEN,
    Instance,
    InstanceWatcher,
    state,
)
from pytest_ephemeral.providers.ec2.removal_steps import ENDING, PAUSE, Removal, remain
from pytest_ephemeral.providers.protocol import Owned

#: In a handle.
GROUP: Final = "group"

#: States of an instance that is being ended: whoever ends it removes its group as well.
_ENDING: Final = frozenset({"shutting-down", "terminated"})

#: By id: None for what is gone, the error for what remains.
Removals = Mapping[str, EphemeralError | None]


def destroy(
    watcher: InstanceWatcher, environment: Environment, accepted: Callable[[], None]
) -> None:
    """Remove all of an environment: its instances, then their group, unless others use it.

    Args:
        watcher: Of its region.
        environment: Up, partly launched, or gone already.
        accepted: Called once EC2 terminates the instances.

    Raises:
        DestroyError: Something remains; says what.
        TamperedRecordError: The record names what is not the environment's. Nothing was removed.
        ElsewhereError: It is in another account. Nothing was removed.
    """
    ids, groups = _find_instances(watcher, environment), _find_groups(watcher, environment)
    living = _terminate(watcher, environment, ids)
    accepted()
    if living:
        _wait_for_end(watcher, environment, living)
    _leave_groups(watcher, environment, groups)


def leave_groups(watcher: InstanceWatcher, environment: Environment) -> None:
    """Delete the groups of an environment whose instances are another's now, unless others use it.

    Raises:
        DestroyError: Something else uses one; says what.
    """
    _leave_groups(watcher, environment, _find_groups(watcher, environment))


def _leave_groups(
    watcher: InstanceWatcher, environment: Environment, groups: Sequence[str]
) -> None:
    for group in groups:
        is_used = partial(_is_used_by_others, watcher, environment, group)
        watcher.groups.leave(environment, group, is_used)


def sweep(client: Any, owned: Sequence[Owned], still: Callable[[Owned], bool]) -> Removals:
    """Remove what is still to be removed, seen once more; see ``SupportsBulkSweep``."""
    ids = {one.id for one in owned}
    there = {one.id: one for one in resources.list_owned(client, values=ids)}
    due = {id for id, one in there.items() if still(one)}
    gone: dict[str, EphemeralError | None] = dict.fromkeys(ids - there.keys())
    return {**gone, **remove(client, due)}


def remove(client: Any, ids: Collection[str], *, images: bool = True) -> Removals:
    """Remove all that carries some ids, but images that were verified.

    Args:
        client: Of EC2.
        ids: Of environments or bakes.
        images: Whether AMIs and snapshots too.

    Returns:
        By id: None, or why something of it remains.
    """
    removal = Removal(client, set(ids))
    removal.remove(images=images)
    return {id: removal.errors.get(id) for id in ids}


def remove_one(client: Any, id: str, *, images: bool = True, launched: Sequence[str] = ()) -> None:
    """As ``remove``, of one id.

    Args:
        client: Of EC2.
        id: Of a bake.
        images: Whether AMIs and snapshots too.
        launched: Its instances, as launching them gave them: seen yet, and with our token, or not.

    Raises:
        DestroyError: Something of it remains; says what.
    """
    removal = Removal(client, {id}, dict.fromkeys(launched, id))
    removal.remove(images=images)
    if error := removal.errors.get(id):
        raise error


def _find_instances(watcher: InstanceWatcher, environment: Environment) -> list[str]:
    """All its instances: recorded, or found by what is recorded, or by their tags."""
    if recorded := environment.handle.get(INSTANCES):
        ids = identity.without_moved(watcher, environment, recorded.split(","))
        identity.check_instances(watcher, environment, ids)
        return ids

    def find() -> list[str]:
        found = resources.find_instances(watcher.client, [environment.id])
        return [str(instance["InstanceId"]) for instance in found]

    request = environment.handle.get(run_instances.REQUEST)
    if not (found := find()) and request:
        identity.check_request(environment, request)
        group = environment.handle.get(GROUP)
        return run_instances.replay(
            watcher.client,
            request,
            find,
            lambda: 0.0 if watcher.groups.has_deleted(group) else UNSEEN,
        )
    return found


def _find_groups(watcher: InstanceWatcher, environment: Environment) -> list[str]:
    recorded = environment.handle.get(GROUP)
    if recorded is None:
        return security_groups.find_of_run(watcher.client, environment.labels[labels.RUN])
    if not recorded:
        return []  # it joined groups of the user's
    known = watcher.groups.knows(recorded)
    exists = known or identity.check_group(watcher.client, environment, recorded)
    return [recorded] if exists else []


def _is_used_by_others(watcher: InstanceWatcher, environment: Environment, group: str) -> bool:
    """Whether instances of other environments are in a group, whose ends come after this one."""
    from botocore.exceptions import ClientError

    try:
        others = watcher.others(environment)
    except ClientError as error:
        if aws.code(error) not in aws_retries.THROTTLED:
            raise
        return False  # then AWS refuses
    ids = {id for one in others if state(one) not in _ENDING for id in resources.group_ids(one)}
    return group in ids


def _wait_for_end(watcher: InstanceWatcher, environment: Environment, ids: Sequence[str]) -> None:
    def have_ended(seen: list[Instance]) -> bool:
        return all(state(one) == "terminated" for one in seen)

    if not watcher.wait(environment, have_ended, ENDING):
        raise remain(environment.id, ids, "they are still shutting down")


def _terminate(
    watcher: InstanceWatcher, environment: Environment, ids: Sequence[str]
) -> Sequence[str]:
    """Have instances terminated; those that had not ended before."""
    from botocore.exceptions import ClientError

    known = {one["InstanceId"]: one for one in watcher.recall(environment)}
    ids = [id for id in ids if id not in known or state(known[id]) != "terminated"]
    if not ids:
        return ids
    young = datetime.now(UTC) - environment.created_at < timedelta(seconds=UNSEEN * 2)

    def may_pass(error: Exception) -> bool:
        match aws.code(error):
            case "InvalidInstanceID.NotFound":
                # It may mean "not yet": such an instance runs on if this is taken for its end.
                return young
            case "OperationNotPermitted":
                _unprotect(watcher, environment, ids)
                return True
        return False

    try:
        waiting.retry(lambda: watcher.end(ids), when=may_pass, within=UNSEEN, every=PAUSE)
    except (ClientError, UnavailableError) as error:
        if aws.code(error) != "InvalidInstanceID.NotFound":
            raise remain(environment.id, ids, describe_error(error)) from error
    return ids


def _unprotect(watcher: InstanceWatcher, environment: Environment, ids: Sequence[str]) -> None:
    """Lift the protection that promotion has set, once no name points to it any more.

    Raises:
        DestroyError: One does.
    """
    if environment.production is not None:
        raise DestroyError(
            f"{environment.id} is {environment.production} and protected from termination. "
            f"Promote another first, or: pytest-ephemeral rollback {environment.production}"
        )
    for id in ids:
        watcher.client.modify_instance_attribute(
            InstanceId=id, DisableApiTermination={"Value": False}
        )
