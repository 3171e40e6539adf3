"""Deregister AMIs and their copies in other regions, and delete the snapshots of both."""

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

#: Seconds after which a deregistered AMI has released its snapshots at the latest.
RELEASE: Final = 60.0


def remove(client: Any, found: Mapping[str, Any]) -> None:
    """Deregister an AMI and its copies in other regions, and delete their snapshots.

    The AMI is quarantined first, so that ``reap`` removes the rest after an interruption.

    Raises:
        DestroyError: The AMI, a copy or a snapshot can't be removed.
    """
    _quarantine(client, found)
    for there, copied in amis.copies_of(found):
        _quarantine(there, copied)
        _remove(there, copied)
    for there in amis.copy_clients(found):  # left by an earlier, interrupted removal
        for snapshot in amis.find_unrecorded_snapshots(there, amis.bake_filter(found)):
            delete_snapshot(there, snapshot["SnapshotId"])
    _remove(client, found)


def leave(client: Any, found: Mapping[str, Any]) -> None:
    """Tag an AMI that is still in use, and its copies, as expired and in no catalog.

    ``reap`` removes them later.
    """
    tags = {STATE: UNRECORDED, labels.EXPIRES: format_expiry(datetime.now(UTC))}
    for there, copied in [*amis.copies_of(found), (client, found)]:
        amis.tag(there, copied, tags)


def remove_snapshots(client: Any, key: str) -> None:
    """Delete the snapshots with a key, after their AMI was deregistered.

    Raises:
        DestroyError: A snapshot or a copy can't be deleted.
    """
    for snapshot in amis.snapshots(client, [{"Name": f"tag:{KEY}", "Values": [key]}]):
        for there, copied in amis.copies_of(snapshot):
            _remove(there, copied)
        delete_snapshot(client, snapshot["SnapshotId"])


def delete_snapshot(client: Any, id: str) -> None:
    """Delete a snapshot; retry, as a deregistered AMI uses it for a moment longer.

    Raises:
        DestroyError: The snapshot can't be deleted.
    """
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
    """The ids of an AMI's snapshots; if it is pending, wait until EC2 lists them."""
    if (known := amis.snapshots_of(found)) or found["State"] != "pending":
        return known

    def look() -> list[str] | str:
        seen = amis.look(client, found["ImageId"])
        may_come = seen["State"] in {"pending", amis.UNKNOWN}
        return amis.snapshots_of(seen) or ("" if may_come else "none")

    snapshots = waiting.wait_until(look, within=amis.UNSEEN, every=amis.POLL)
    return snapshots if isinstance(snapshots, list) else []
