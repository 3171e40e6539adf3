"""Remove all resources with some ids, step by step; see ``removal``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from pytest_ephemeral import aws, labels
from pytest_ephemeral.errors import DestroyError, EphemeralError
from pytest_ephemeral.providers import waiting
from pytest_ephemeral.providers.ec2 import (
    amis,
    deregistration,
    resources,
    transfers,
)
from pytest_ephemeral.providers.ec2.errors import describe_error
from pytest_ephemeral.providers.ec2.instance_watcher import UNSEEN, state, terminate, watch_region
from pytest_ephemeral.providers.ec2.tags import TRANSFER, tags_of

#: Seconds between attempts to terminate an instance that is not visible yet.
PAUSE: Final = 1.0
#: Seconds between polls of instances that are ending, and after which waiting for them ends.
POLL: Final = 2.0
ENDING: Final = 600
#: How many resources are deleted at once that AWS deletes one by one.
AT_ONCE: Final = 16


def remain(id: str, ids: Collection[str], why: str) -> DestroyError:
    """The error for an id whose instances have not ended."""
    names = " ".join(sorted(ids))
    return DestroyError(
        f"{id}: the instances {names} have not ended: {why}. See "
        f"`aws ec2 describe-instances --instance-ids {names}`, then: pytest-ephemeral reap"
    )


def is_unknown(error: Exception) -> bool:
    """Whether EC2 does not list an instance: not yet, or not any more."""
    return aws.code(error) == "InvalidInstanceID.NotFound"


def _owner(resource: Mapping[str, Any]) -> str:
    return tags_of(resource)[labels.ID]


class Removal:
    """The removal of some ids; an id with an error is left out of the later steps."""

    def __init__(
        self, client: Any, ids: set[str], launched: Mapping[str, str] | None = None
    ) -> None:
        self.client = client
        self.ids = ids
        self.launched = dict(launched or {})  # by the id of an instance: the owner's id
        self.errors: dict[str, EphemeralError] = {}
        self.joined: dict[str, str] = {}  # by the id of a group: the id of an instance's owner

    def remove(self, *, images: bool) -> None:
        """Run all steps, in order."""
        self.end_instances()
        self.delete_groups()
        self.delete_unattached()
        if images:
            self.deregister()

    def end_instances(self) -> None:
        """Terminate the instances, and wait until they have ended."""
        found = resources.find_instances(self.client, self.ids)
        owners = {**self.launched, **{str(one["InstanceId"]): _owner(one) for one in found}}
        self.joined = {group: _owner(one) for one in found for group in resources.group_ids(one)}
        if not owners:
            return
        for id, error in self._terminate(owners).items():
            if not is_unknown(error):  # an unknown instance is checked once more below
                owner = owners.pop(id)
                self._fail(owner, remain(owner, [id], describe_error(error)))

        def have_ended() -> bool:
            for id in self._find_ended(list(owners)) if owners else ():
                del owners[id]
            return not owners

        waiting.wait_until(have_ended, within=ENDING, every=POLL)
        left = defaultdict(list)
        for id, owner in owners.items():
            left[owner].append(id)
        for owner, ids in left.items():
            self._fail(owner, remain(owner, ids, "they are still shutting down"))

    def _terminate(self, ids: Collection[str]) -> dict[str, Exception]:
        """Terminate instances, with retries for new ones; return the errors by id."""
        errors = terminate(self.client, ids)

        def end_unseen() -> bool:
            unseen = [id for id in errors if id in self.launched and is_unknown(errors[id])]
            for id in unseen:
                del errors[id]
            errors.update(terminate(self.client, unseen))
            return not any(is_unknown(errors[id]) for id in unseen if id in errors)

        waiting.wait_until(end_unseen, within=UNSEEN, every=PAUSE)
        return errors

    def delete_groups(self) -> None:
        """Delete the groups of the ids, with their files in S3; and unused groups of their runs."""
        groups = resources.find_groups(self.client, self._ids_without_error())
        self._each(groups, self._delete_group)
        shared = resources.find_shared_groups(self.client, self.joined)
        self._each(shared, self._delete_group, lambda one: self.joined[one["GroupId"]])

    def delete_unattached(self) -> None:
        """Delete network interfaces and volumes that instances have left behind."""
        for kind in ("network_interface", "volume"):
            for wanted in self._filters():
                found = resources.find_unattached(self.client, kind, wanted)
                self._each(found, lambda one, kind=kind: self._delete(kind, one))  # type: ignore[misc]

    def deregister(self) -> None:
        """Deregister AMIs, then delete the snapshots that are left."""
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
        """The ids of the instances that have ended; none if EC2 throttles."""
        found = aws.poll(self.client, partial(resources.describe_instances, ids=ids))
        if found is None:
            return set()
        seen = {str(one["InstanceId"]): state(one) for one in found}
        return {id for id in ids if seen.get(id, "terminated") == "terminated"}

    def _each(
        self,
        found: Sequence[Any],
        delete: Callable[[Any], None],
        owner_of: Callable[[Any], str] = _owner,
    ) -> None:
        """Delete resources, several at once; record each error under the owner's id."""
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
        watch_region(self.client.meta.region_name).groups.delete(str(group["GroupId"]))

    def _delete(self, kind: str, one: Mapping[str, Any]) -> None:
        from botocore.exceptions import ClientError

        name = {"volume": "VolumeId", "network_interface": "NetworkInterfaceId"}[kind]
        try:
            getattr(self.client, f"delete_{kind}")(**{name: one["Id"]})
        except ClientError as error:
            if not aws.code(error).endswith(".NotFound"):
                raise DestroyError(f"{one['Id']} can't be deleted: {error}") from error
