"""Removing all that carries some ids, of environments or of bakes, in an order that works.

Instances → until they have ended → groups → interfaces and volumes → AMIs → snapshots. Each step
is one look, and one call where AWS takes many at once: two hundred ids cost little more than one.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from pytest_ephemeral import aws, labels
from pytest_ephemeral.errors import DestroyError, EphemeralError
from pytest_ephemeral.providers.ec2 import amis, belongings, deregistering, groups, transfers
from pytest_ephemeral.providers.ec2.fleet import state, terminate
from pytest_ephemeral.providers.ec2.refusals import told
from pytest_ephemeral.providers.ec2.tagging import TRANSFER, tags_of
from pytest_ephemeral.providers.protocol import Owned

#: Seconds between looks at instances that end, and in which they do.
POLL: Final = 2.0
ENDING: Final = 600
#: So many things, of those that AWS takes one by one, are deleted at once.
AT_ONCE: Final = 16

Outcome = Mapping[str, EphemeralError | None]


def sweep(client: Any, owned: Sequence[Owned], still: Callable[[Owned], bool]) -> Outcome:
    """Remove what is still to be removed, seen once more; see ``SupportsBulkSweep``."""
    ids = {one.id for one in owned}
    there = {one.id: one for one in belongings.owned(client, values=ids)}
    due = {id for id, one in there.items() if still(one)}
    gone: dict[str, EphemeralError | None] = dict.fromkeys(ids - there.keys())
    return {**gone, **remove(client, due)}


def remove(client: Any, ids: Collection[str], *, images: bool = True) -> Outcome:
    """Remove all that carries some ids, but what was verified.

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
    removal.delete_free()
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


def remaining(id: str, ids: Collection[str], why: str) -> DestroyError:
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
        found = belongings.instances_of(self.client, self.ids)
        owners = {str(one["InstanceId"]): _owner(one) for one in found}
        self.joined = {group: _owner(one) for one in found for group in belongings.groups_of(one)}
        if not owners:
            return
        for id, error in terminate(self.client, owners).items():
            owner = owners.pop(id)
            if aws.code(error) != "InvalidInstanceID.NotFound":
                self._failed(owner, remaining(owner, [id], told(error)))
        deadline = time.monotonic() + ENDING
        while owners and time.monotonic() < deadline:
            ended = self._ended(list(owners))
            owners = {id: owner for id, owner in owners.items() if id not in ended}
            if owners:
                time.sleep(POLL)
        left = defaultdict(list)
        for id, owner in owners.items():
            left[owner].append(id)
        for owner, ids in left.items():
            self._failed(owner, remaining(owner, ids, "they are still shutting down"))

    def delete_groups(self) -> None:
        """Groups, and before them what their bakes have in S3; and those that a run has shared."""
        self._each(belongings.groups_for(self.client, self._left()), self._delete_group)
        shared = belongings.shared_groups(self.client, self.joined)
        self._each(shared, self._delete_group, lambda one: self.joined[one["GroupId"]])

    def delete_free(self) -> None:
        """What instances have left behind."""
        for kind in ("network_interface", "volume"):
            for filters in self._filters():
                found = belongings.free(self.client, kind, filters)
                self._each(found, lambda one, kind=kind: self._delete_free(kind, one))  # type: ignore[misc]

    def deregister(self) -> None:
        """AMIs, and then the snapshots that no AMI has any more."""
        for filters in self._filters():
            found = amis.unrecorded(self.client, filters)
            self._each(found, lambda one: deregistering.remove(self.client, one))
        for filters in self._filters():
            snapshots = amis.unrecorded_snapshots(self.client, filters)
            self._each(
                snapshots, lambda o: deregistering.delete_snapshot(self.client, o["SnapshotId"])
            )

    def _left(self) -> set[str]:
        return self.ids - self.errors.keys()

    def _filters(self) -> list[belongings.Filter]:
        return belongings.filters(labels.ID, self._left())

    def _ended(self, ids: Sequence[str]) -> set[str]:
        """Those that have ended, as far as can be told now."""
        from botocore.exceptions import ClientError

        try:
            found = belongings.described(self.client, ids)
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
        """Delete things, several at once; what can't be is laid to its owner."""
        from botocore.exceptions import ClientError

        def try_(one: Any) -> None:
            owner = owner_of(one)
            try:
                with aws.explained():
                    delete(one)
            except EphemeralError as error:
                self._failed(owner, error)
            except ClientError as error:
                self._failed(owner, DestroyError(f"{owner} remains: {told(error)}"))

        if found:
            with ThreadPoolExecutor(min(AT_ONCE, len(found))) as pool:
                list(pool.map(try_, found))

    def _failed(self, owner: str, error: EphemeralError) -> None:
        self.errors.setdefault(owner, error)

    def _delete_group(self, group: Mapping[str, Any]) -> None:
        if transfer := tags_of(group).get(TRANSFER):
            transfers.remove(transfer)
        groups.delete(self.client, group["GroupId"])

    def _delete_free(self, kind: str, one: Mapping[str, Any]) -> None:
        from botocore.exceptions import ClientError

        name = {"volume": "VolumeId", "network_interface": "NetworkInterfaceId"}[kind]
        try:
            getattr(self.client, f"delete_{kind}")(**{name: one["Id"]})
        except ClientError as error:
            if not aws.code(error).endswith(".NotFound"):
                raise DestroyError(f"{one['Id']} can't be deleted: {error}") from error
