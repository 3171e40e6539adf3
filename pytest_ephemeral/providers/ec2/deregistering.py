"""Taking AMIs away: they, their copies in other regions, and the snapshots of all of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from pytest_ephemeral import aws, labels, machine
from pytest_ephemeral.errors import DestroyError
from pytest_ephemeral.providers.ec2 import amis
from pytest_ephemeral.providers.ec2.tagging import (
    KEY,
    PROCESS,
    QUARANTINED,
    STATE,
    UNRECORDED,
    expiry,
    tags_of,
)

#: Seconds in which a snapshot is let go of by the AMI that was deregistered.
LETTING_GO: Final = 60.0


def remove(client: Any, found: Mapping[str, Any]) -> None:
    """Deregister an AMI, here and where it was copied to, and delete the snapshots.

    It is nobody's from the first moment on: what of it is left, if this is cut short, is reaped.

    Raises:
        DestroyError: Something of it remains.
    """
    _condemn(client, found)
    for there, copied in amis.copies_of(found):
        _condemn(there, copied)
        _remove(there, copied)
    for there in amis.elsewhere(found):  # cut short before, it may have left these
        for snapshot in amis.unrecorded_snapshots(there, amis.of_bake(found)):
            delete_snapshot(there, snapshot["SnapshotId"])
    _remove(client, found)


def leave(client: Any, found: Mapping[str, Any]) -> None:
    """Leave an AMI, and its copies, to reap: no catalog has it any more, and something still runs.

    What runs from an AMI that was deregistered goes on running (EC2's guide, "Deregister an AMI").
    """
    marks = {STATE: UNRECORDED, labels.EXPIRES: expiry(datetime.now(UTC))}
    for there, copied in [*amis.copies_of(found), (client, found)]:
        amis.mark(there, copied, marks)


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

    deadline = time.monotonic() + LETTING_GO
    while True:
        try:
            client.delete_snapshot(SnapshotId=id)
        except ClientError as error:
            found = aws.code(error)
            if found == "InvalidSnapshot.InUse" and time.monotonic() < deadline:
                time.sleep(amis.POLL)
                continue
            if found not in amis.GONE:
                raise DestroyError(f"the snapshot {id} can't be deleted: {error}") from error
        return


def _condemn(client: Any, found: Mapping[str, Any]) -> None:
    if tags_of(found).get(STATE) != QUARANTINED:
        now = expiry(datetime.now(UTC))
        me = machine.process_of(machine.this_owner("prune"))
        amis.mark(client, found, {STATE: QUARANTINED, labels.EXPIRES: now, PROCESS: me})


def _remove(client: Any, found: Mapping[str, Any]) -> None:
    from botocore.exceptions import ClientError

    snapshots = amis.snapshots_of(found) or _appearing(client, found)
    try:
        client.deregister_image(ImageId=found["ImageId"])
    except ClientError as error:
        if aws.code(error) not in amis.GONE:
            raise DestroyError(f"the AMI {found['ImageId']} can't be removed: {error}") from error
    for snapshot in snapshots:
        delete_snapshot(client, snapshot)


def _appearing(client: Any, found: Mapping[str, Any]) -> list[str]:
    """The snapshots of a pending AMI: it is waited for until they are known, or can't come."""
    deadline = time.monotonic() + amis.UNSEEN
    while found["State"] == "pending" and time.monotonic() < deadline:
        if seen := amis.looked(client, found["ImageId"]):
            found = seen
        if snapshots := amis.snapshots_of(found):
            return snapshots
        time.sleep(amis.POLL)
    return amis.snapshots_of(found)
