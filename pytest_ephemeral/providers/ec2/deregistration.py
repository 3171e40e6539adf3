"""Deregister AMIs: they, their copies in other regions, and the snapshots of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from pytest_ephemeral import aws, labels, machine
from pytest_ephemeral.errors import DestroyError
from pytest_ephemeral.providers import waiting
from pytest_ephemeral.providers.ec2 import amis
from pytest_ephemeral.providers.ec2.tags import (
    KEY,
    PROCESS,
    QUARANTINED,
    STATE,
    UNRECORDED,
    format_expiry,
    tags_of,
)

#: Seconds in which a deregistered AMI releases its snapshots.
RELEASE: Final = 60.0


def remove(client: Any, found: Mapping[str, Any]) -> None:
    """Deregister an AMI, here and where it was copied to, and delete the snapshots.

    It is quarantined first: what is left of it, if this is cut short, is reaped.

    Raises:
        DestroyError: Something of it remains.
    """
    _quarantine(client, found)
    for there, copied in amis.copies_of(found):
        _quarantine(there, copied)
        _remove(there, copied)
    for there in amis.copy_clients(found):  # cut short before, it may have left these
        for snapshot in amis.find_unrecorded_snapshots(there, amis.bake_filter(found)):
            delete_snapshot(there, snapshot["SnapshotId"])
    _remove(client, found)


def leave(client: Any, found: Mapping[str, Any]) -> None:
    """Leave an AMI that is still in use, and its copies, to reap: no catalog lists it any more."""
    tags = {STATE: UNRECORDED, labels.EXPIRES: format_expiry(datetime.now(UTC))}
    for there, copied in [*amis.copies_of(found), (client, found)]:
        amis.tag(there, copied, tags)


def remove_snapshots(client: Any, key: str) -> None:
    """Delete the snapshots that were made under a key, and that no AMI has any more.

    Raises:
        DestroyError: One can't be deleted.
    """
    for snapshot in amis.snapshots(client, [{"Name": f"tag:{KEY}", "Values": [key]}]):
        for there, copied in amis.copies_of(snapshot):
            _remove(there, copied)
        delete_snapshot(client, snapshot["SnapshotId"])


def delete_snapshot(client: Any, id: str) -> None:
    """Delete a snapshot; the AMI that used it lets go of it a moment after it is gone."""
    from botocore.exceptions import ClientError

    try:
        waiting.retry(
            lambda: client.delete_snapshot(SnapshotId=id),
            when=lambda error: aws.code(error) == "InvalidSnapshot.InUse",
            within=RELEASE,
            every=amis.POLL,
        )
    except ClientError as error:
        if aws.code(error) not in amis.GONE:
            raise DestroyError(f"the snapshot {id} can't be deleted: {error}") from error


def _quarantine(client: Any, found: Mapping[str, Any]) -> None:
    if tags_of(found).get(STATE) != QUARANTINED:
        now = format_expiry(datetime.now(UTC))
        process = machine.process_of(machine.this_owner("prune"))
        amis.tag(client, found, {STATE: QUARANTINED, labels.EXPIRES: now, PROCESS: process})


def _remove(client: Any, found: Mapping[str, Any]) -> None:
    from botocore.exceptions import ClientError

    snapshots = find_snapshots(client, found)
    try:
        client.deregister_image(ImageId=found["ImageId"])
    except ClientError as error:
        if aws.code(error) not in amis.GONE:
            raise DestroyError(f"the AMI {found['ImageId']} can't be removed: {error}") from error
    for snapshot in snapshots:
        delete_snapshot(client, snapshot)


def find_snapshots(client: Any, found: Mapping[str, Any]) -> list[str]:
    """The snapshots of an AMI; those of a pending one, as soon as they are known."""
    if (known := amis.snapshots_of(found)) or found["State"] != "pending":
        return known

    def look() -> list[str] | str:
        seen = amis.look(client, found["ImageId"])
        may_come = seen["State"] in {"pending", amis.UNKNOWN}
        return amis.snapshots_of(seen) or ("" if may_come else "none")

    snapshots = waiting.wait_until(look, within=amis.UNSEEN, every=amis.POLL)
    return snapshots if isinstance(snapshots, list) else []
