"""Removing environments and bakes: one by its record, or all that carries some ids.

Instances → until they have ended → groups → interfaces and volumes → AMIs → snapshots. Each step
is one look, and one call where AWS takes many at once: two hundred ids cost little more than one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from pytest_ephemeral import aws, labels
from pytest_ephemeral.errors import DestroyError, EphemeralError, UnavailableError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers import waiting
from pytest_ephemeral.providers.ec2 import (
    amis,
    deregistration,
    identity,
    resources,
    run_instances,
    security_groups,
    transfers,
)
from pytest_ephemeral.providers.ec2.errors import describe_error
from pytest_ephemeral.providers.ec2.instance_watcher import (
    INSTANCES,
    UNSEEN,
    Instance,
    InstanceWatcher,
    state,
    terminate,
)
from pytest_ephemeral.providers.ec2.tags import TRANSFER, tags_of
from pytest_ephemeral.providers.protocol import Owned

#: In a handle.
GROUP: Final = "group"

#: States of an instance that is being ended: whoever ends it removes its group as well.
_ENDING: Final = frozenset({"shutting-down", "terminated"})
#: Seconds between tries to end an instance that is not visible yet.
_PAUSE: Final = 1.0
#: Seconds between looks at instances that end, and in which they do.
POLL: Final = 2.0
ENDING: Final = 600
#: So many things, of those that AWS takes one by one, are deleted at once.
AT_ONCE: Final = 16

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
    removal = _Removal(client, set(ids))
    removal.end_instances()
    removal.delete_groups()
    removal.delete_unattached()
    if images:
        removal.deregister()
    return {id: removal.errors.get(id) for id in ids}


def remove_one(client: Any, id: str, *, images: bool = True) -> None:
    """As ``remove``, of one id.

    Raises:
        DestroyError: Something of it remains; says what.
    """
    if error := remove(client, [id], images=images)[id]:
        raise error


def _find_instances(watcher: InstanceWatcher, environment: Environment) -> list[str]:
    """All its instances: recorded, or found by what is recorded, or by their tags."""
    if recorded := environment.handle.get(INSTANCES):
        ids = recorded.split(",")
        identity.check_instances(watcher, environment, ids)
        return ids

    def find() -> list[str]:
        found = resources.find_instances(watcher.client, [environment.id])
        return [str(instance["InstanceId"]) for instance in found]

    request = environment.handle.get(run_instances.REQUEST)
    if not (found := find()) and request:
        identity.check_request(environment, request)
        return run_instances.replay(watcher.client, request, find, UNSEEN)
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
        if aws.code(error) not in aws.THROTTLED:
            raise
        return False  # then AWS refuses
    ids = {id for one in others if state(one) not in _ENDING for id in resources.group_ids(one)}
    return group in ids


def _wait_for_end(watcher: InstanceWatcher, environment: Environment, ids: Sequence[str]) -> None:
    def have_ended(seen: list[Instance]) -> bool:
        return all(state(one) == "terminated" for one in seen)

    if not watcher.wait(environment, have_ended, ENDING):
        raise _remain(environment.id, ids, "they are still shutting down")


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
        waiting.retry(lambda: watcher.end(ids), when=may_pass, within=UNSEEN, every=_PAUSE)
    except (ClientError, UnavailableError) as error:
        if aws.code(error) != "InvalidInstanceID.NotFound":
            raise _remain(environment.id, ids, describe_error(error)) from error
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


def _remain(id: str, ids: Collection[str], why: str) -> DestroyError:
    """The error for instances that have not ended."""
    names = " ".join(sorted(ids))
    return DestroyError(
        f"{id}: the instances {names} have not ended: {why}. See "
        f"`aws ec2 describe-instances --instance-ids {names}`, then: pytest-ephemeral reap"
    )


def _owner(resource: Mapping[str, Any]) -> str:
    return tags_of(resource)[labels.ID]


class _Removal:
    """Step by step; an id that something remains of is left out of the steps after that."""

    def __init__(self, client: Any, ids: set[str]) -> None:
        self.client = client
        self.ids = ids
        self.errors: dict[str, EphemeralError] = {}
        self.joined: dict[str, str] = {}  # a group that an instance was in, and whose that was

    def end_instances(self) -> None:
        """Terminate, and wait."""
        found = resources.find_instances(self.client, self.ids)
        owners = {str(one["InstanceId"]): _owner(one) for one in found}
        self.joined = {group: _owner(one) for one in found for group in resources.group_ids(one)}
        if not owners:
            return
        for id, error in terminate(self.client, owners).items():
            owner = owners.pop(id)
            if aws.code(error) != "InvalidInstanceID.NotFound":
                self._fail(owner, _remain(owner, [id], describe_error(error)))

        def have_ended() -> bool:
            for id in self._find_ended(list(owners)) if owners else ():
                del owners[id]
            return not owners

        waiting.wait_until(have_ended, within=ENDING, every=POLL)
        left = defaultdict(list)
        for id, owner in owners.items():
            left[owner].append(id)
        for owner, ids in left.items():
            self._fail(owner, _remain(owner, ids, "they are still shutting down"))

    def delete_groups(self) -> None:
        """Groups, and before them what their bakes have in S3; and those that a run shared."""
        groups = resources.find_groups(self.client, self._ids_without_error())
        self._each(groups, self._delete_group)
        shared = resources.find_shared_groups(self.client, self.joined)
        self._each(shared, self._delete_group, lambda one: self.joined[one["GroupId"]])

    def delete_unattached(self) -> None:
        """What instances have left behind."""
        for kind in ("network_interface", "volume"):
            for wanted in self._filters():
                found = resources.find_unattached(self.client, kind, wanted)
                self._each(found, lambda one, kind=kind: self._delete(kind, one))  # type: ignore[misc]

    def deregister(self) -> None:
        """AMIs, and then the snapshots that no AMI has any more."""
        for wanted in self._filters():
            found = amis.find_unrecorded(self.client, wanted)
            self._each(found, lambda one: deregistration.remove(self.client, one))
        for wanted in self._filters():
            snapshots = amis.find_unrecorded_snapshots(self.client, wanted)
            self._each(
                snapshots, lambda o: deregistration.delete_snapshot(self.client, o["SnapshotId"])
            )

    def _ids_without_error(self) -> set[str]:
        return self.ids - self.errors.keys()

    def _filters(self) -> list[resources.Filter]:
        return resources.filters(labels.ID, self._ids_without_error())

    def _find_ended(self, ids: Sequence[str]) -> set[str]:
        """Those that have ended, as far as can be seen now."""
        from botocore.exceptions import ClientError

        try:
            found = resources.describe_instances(self.client, ids)
        except ClientError as error:
            if aws.code(error) not in aws.THROTTLED:
                raise
            return set()
        seen = {str(one["InstanceId"]): state(one) for one in found}
        return {id for id in ids if seen.get(id, "terminated") == "terminated"}

    def _each(
        self,
        found: Sequence[Any],
        delete: Callable[[Any], None],
        owner_of: Callable[[Any], str] = _owner,
    ) -> None:
        """Delete things, several at once; what fails is recorded for its owner."""
        from botocore.exceptions import ClientError

        def try_(one: Any) -> None:
            owner = owner_of(one)
            try:
                with aws.translate_errors():
                    delete(one)
            except EphemeralError as error:
                self._fail(owner, error)
            except ClientError as error:
                self._fail(owner, DestroyError(f"{owner} remains: {describe_error(error)}"))

        if found:
            with ThreadPoolExecutor(min(AT_ONCE, len(found))) as pool:
                list(pool.map(try_, found))

    def _fail(self, owner: str, error: EphemeralError) -> None:
        self.errors.setdefault(owner, error)

    def _delete_group(self, group: Mapping[str, Any]) -> None:
        if transfer := tags_of(group).get(TRANSFER):
            transfers.remove(transfer)
        security_groups.delete(self.client, group["GroupId"])

    def _delete(self, kind: str, one: Mapping[str, Any]) -> None:
        from botocore.exceptions import ClientError

        name = {"volume": "VolumeId", "network_interface": "NetworkInterfaceId"}[kind]
        try:
            getattr(self.client, f"delete_{kind}")(**{name: one["Id"]})
        except ClientError as error:
            if not aws.code(error).endswith(".NotFound"):
                raise DestroyError(f"{one['Id']} can't be deleted: {error}") from error
