"""Remove an environment by its record, or all resources with some ids.

Terminate instances → wait → delete groups → interfaces and volumes → AMIs → snapshots. Each step
lists once, and removes many in one call where AWS allows it: two hundred ids take little longer
than one.
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

#: In a handle: the id of the run's security group; empty if the template has groups.
GROUP: Final = "group"

#: States of an instance that another thread or process is ending: that one removes its group.
_ENDING: Final = frozenset({"shutting-down", "terminated"})

#: By id: None if all of it is removed; if not, the error.
Removals = Mapping[str, EphemeralError | None]


def destroy(
    watcher: InstanceWatcher, environment: Environment, accepted: Callable[[], None]
) -> None:
    """Remove an environment: its instances, then their group, unless others use it.

    Args:
        watcher: The watcher of the environment's region.
        environment: An environment that is up, partly launched, or gone.
        accepted: Called once EC2 has begun to terminate the instances.

    Raises:
        DestroyError: Something remains; the message names it.
        TamperedRecordError: The record names another's resources. Nothing was removed.
        ElsewhereError: It is in another account. Nothing was removed.
    """
    ids, groups = _find_instances(watcher, environment), _find_groups(watcher, environment)
    living = _terminate(watcher, environment, ids)
    accepted()
    if living:
        _wait_for_end(watcher, environment, living)
    _leave_groups(watcher, environment, groups)


def leave_groups(watcher: InstanceWatcher, environment: Environment) -> None:
    """Delete an environment's groups after another environment has taken over its instance.

    Raises:
        DestroyError: Something other than an environment uses one; the message names it.
    """
    _leave_groups(watcher, environment, _find_groups(watcher, environment))


def _leave_groups(
    watcher: InstanceWatcher, environment: Environment, groups: Sequence[str]
) -> None:
    for group in groups:
        is_used = partial(_is_used_by_others, watcher, environment, group)
        watcher.groups.leave(environment, group, is_used)


def sweep(client: Any, owned: Sequence[Owned], condition: Callable[[Owned], bool]) -> Removals:
    """List resources again, and remove those that are still due; see ``SupportsBulkSweep``."""
    ids = {one.id for one in owned}
    there = {one.id: one for one in resources.list_owned(client, values=ids)}
    due = {id for id, one in there.items() if condition(one)}
    gone: dict[str, EphemeralError | None] = dict.fromkeys(ids - there.keys())
    return {**gone, **remove(client, due)}


def remove(client: Any, ids: Collection[str], *, images: bool = True) -> Removals:
    """Remove all resources with some ids, except AMIs that are in a catalog.

    Args:
        client: An EC2 client.
        ids: The ids of environments or bakes.
        images: Whether to remove AMIs and snapshots, too.

    Returns:
        By id: None, or the error that says what remains.
    """
    removal = Removal(client, set(ids))
    removal.remove(images=images)
    return {id: removal.errors.get(id) for id in ids}


def remove_one(client: Any, id: str, *, images: bool = True, launched: Sequence[str] = ()) -> None:
    """Remove all resources with one id; see ``remove``.

    Args:
        client: An EC2 client.
        id: The id of a bake.
        images: Whether to remove AMIs and snapshots, too.
        launched: The ids of its instances, if known: EC2 may not list them yet.

    Raises:
        DestroyError: Something remains; the message names it.
    """
    removal = Removal(client, {id}, dict.fromkeys(launched, id))
    removal.remove(images=images)
    if error := removal.errors.get(id):
        raise error


def _find_instances(watcher: InstanceWatcher, environment: Environment) -> list[str]:
    """The ids of an environment's instances: from its record, by tags, or by ``replay``."""
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
        return []  # its template has security-groups
    known = watcher.groups.knows(recorded)
    exists = known or identity.check_group(watcher.client, environment, recorded)
    return [recorded] if exists else []


def _is_used_by_others(watcher: InstanceWatcher, environment: Environment, group: str) -> bool:
    """Whether instances of other environments are in a group, and are not being ended."""
    from botocore.exceptions import ClientError

    try:
        others = watcher.others(environment)
    except ClientError as error:
        if aws.code(error) not in aws_retries.THROTTLED:
            raise
        return False  # if it is used, AWS refuses to delete it
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
    """Terminate instances; return the ids of those that had not ended before."""
    from botocore.exceptions import ClientError

    known = {one["InstanceId"]: one for one in watcher.recall(environment)}
    ids = [id for id in ids if id not in known or state(known[id]) != "terminated"]
    if not ids:
        return ids
    young = datetime.now(UTC) - environment.created_at < timedelta(seconds=UNSEEN * 2)

    def may_pass(error: Exception) -> bool:
        match aws.code(error):
            case "InvalidInstanceID.NotFound":
                # A new instance may not be visible yet: it must not be taken for gone.
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
    """Remove the termination protection that promotion has set.

    Raises:
        DestroyError: A DNS name still points to the environment.
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
