"""AMIs of ours: made, waited for, found by their key, copied, and removed with their snapshots."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from pytest_ephemeral import aws, files, labels
from pytest_ephemeral.errors import BakeError, ConfigurationError, DestroyError, LaunchError
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers.ec2.tables import BaseQuery
from pytest_ephemeral.providers.ec2.tagging import (
    COPIES,
    KEY,
    QUARANTINED,
    RECIPE,
    STATE,
    VERIFIED,
    as_tags,
    tagged,
    tags_of,
)

#: Seconds an AMI may be pending: large volumes take most of an hour.
PENDING: Final = 3600.0
POLL: Final = 2.0
#: Seconds in which what was just made becomes visible.
UNSEEN: Final = 60.0
#: How often people who wait are told.
SAY_AGAIN: Final = 15.0
#: Seconds in which a snapshot is let go of by the AMI that was deregistered.
LETTING_GO: Final = 60.0

#: In an image's handle: the volumes that are meant to be there when the instance is not any more,
#: each with its size.
OUTLIVING: Final = "outliving-volumes"

_NOT_VISIBLE: Final = "not visible yet"
_GONE: Final = frozenset(
    {"InvalidAMIID.NotFound", "InvalidAMIID.Unavailable", "InvalidSnapshot.NotFound"}
)


def resolve(base: str | BaseQuery, region: str | None) -> str:
    """The id that a recipe's base means now.

    Raises:
        ConfigurationError: There is none such.
    """
    from botocore.exceptions import ClientError

    if isinstance(base, BaseQuery):
        return _newest(base, region)
    if not base.startswith("ssm:"):
        return base
    name = base.removeprefix("ssm:")
    try:
        with aws.explained():
            found = aws.client("ssm", region).get_parameter(Name=name)
    except ClientError as error:
        raise ConfigurationError(f"base: no parameter {name!r} in SSM: {error}") from error
    return str(found["Parameter"]["Value"])


def described(client: Any, id: str) -> Mapping[str, Any] | None:
    """An AMI as EC2 has it; None when it has none such."""
    from botocore.exceptions import ClientError

    try:
        found = client.describe_images(ImageIds=[id])["Images"]
    except ClientError as error:
        if aws.code(error) in _GONE or aws.code(error) == "InvalidAMIID.Malformed":
            return None
        raise
    return found[0] if found else None


def of_key(client: Any, key: str, state: str) -> list[Mapping[str, Any]]:
    """The AMIs of this account that were baked under a key."""
    filters = [
        {"Name": f"tag:{KEY}", "Values": [key]},
        {"Name": f"tag:{STATE}", "Values": [state]},
    ]
    found: list[Mapping[str, Any]] = client.describe_images(Owners=["self"], Filters=filters)[
        "Images"
    ]
    return sorted(found, key=lambda image: image["ImageId"])


def create(client: Any, instance: str, name: str, marks: Mapping[str, str]) -> str:
    """Ask for the AMI of a stopped instance, in quarantine.

    Args:
        client: Of EC2.
        instance: Its id.
        name: The AMI's name, this bake's alone: asked for twice, it is found.
        marks: Tags of it and of its snapshots.

    Returns:
        Its id; it is pending.
    """
    from botocore.exceptions import ClientError

    try:
        made = client.create_image(
            InstanceId=instance,
            Name=name,
            TagSpecifications=tagged({**marks, STATE: QUARANTINED}, "image", "snapshot"),
        )
        return str(made["ImageId"])
    except ClientError as error:
        if aws.code(error) != "InvalidAMIName.Duplicate":
            raise
    filters = [{"Name": "name", "Values": [name]}]
    (found,) = client.describe_images(Owners=["self"], Filters=filters)["Images"]
    return str(found["ImageId"])


def wait(
    client: Any, id: str, say: Callable[[str], None], *, within: float = PENDING
) -> Mapping[str, Any]:
    """Wait until an AMI is available; boto3's own waiter gives up after ten minutes.

    Args:
        client: Of EC2.
        id: The AMI's.
        say: Told now and then how long it has been.
        within: Seconds.

    Raises:
        BakeError: It failed, or was not in time.
    """
    started = said = seen = time.monotonic()
    while True:
        found, now = _looked(client, id), time.monotonic()
        state = found["State"]
        if state == "available":
            return found
        if state in {"failed", "error", "invalid", "deregistered"}:
            reason = found.get("StateReason", {}).get("Message", "no reason given")
            raise BakeError(f"the AMI {id} is {state}: {reason}")
        if state != _NOT_VISIBLE:
            seen = now
        if now - seen > UNSEEN or now - started > within:
            raise BakeError(f"the AMI {id} is still {state} after {now - started:.0f} s")
        if now - said > SAY_AGAIN:
            say(f"the AMI {id} is {state}, {now - started:.0f} s")
            said = now
        time.sleep(POLL * random.SystemRandom().uniform(1.0, 1.2))


def verify(client: Any, found: Mapping[str, Any]) -> None:
    """Let an AMI and its snapshots out of quarantine."""
    resources = [found["ImageId"], *snapshots_of(found)]
    client.create_tags(Resources=resources, Tags=as_tags({STATE: VERIFIED}))


def copy(
    found: Mapping[str, Any], source: str, regions: Sequence[str], say: Callable[[str], None]
) -> None:
    """Copy an AMI to other regions, and wait until it is there.

    Where it is going stands on it first, so that a copy is found even if this is cut short.
    """
    if not regions:
        return
    client = aws.client("ec2", source)
    resources = [found["ImageId"], *snapshots_of(found)]
    client.create_tags(Resources=resources, Tags=as_tags({COPIES: " ".join(regions)}))
    marks = {key: value for key, value in tags_of(found).items() if not key.startswith("aws:")}
    made = {}
    for region in regions:
        token = f"{found['ImageId']}|{region}"
        answer = aws.client("ec2", region).copy_image(
            Name=found["Name"],
            SourceImageId=found["ImageId"],
            SourceRegion=source,
            ClientToken=hashlib.sha256(token.encode()).hexdigest(),
            TagSpecifications=tagged({**marks, STATE: QUARANTINED}, "image", "snapshot"),
        )
        made[region] = str(answer["ImageId"])
    for region, id in made.items():
        say(f"copying it to {region} as {id}")
        there = aws.client("ec2", region)
        verify(there, wait(there, id, say))


def as_image(found: Mapping[str, Any], region: str, prefix: str) -> Image:
    """An AMI as the catalog has it.

    An AMI can't be changed; its id, with those of its snapshots, stands for its content.
    """
    marks = tags_of(found)
    content = " ".join([found["ImageId"], *snapshots_of(found)])
    handle = {
        "region": region,
        "prefix": prefix,
        "root-device": str(found.get("RootDeviceName", "")),
        OUTLIVING: " ".join(
            f"{one['DeviceName']}={one['Ebs'].get('VolumeSize', '')}"
            for one in _volumes(found)
            if not one["Ebs"].get("DeleteOnTermination", True)
        ),
        "architecture": str(found.get("Architecture", "")),
    }
    return Image(
        name=marks.get(RECIPE, found.get("Name", "")),
        key=marks.get(KEY, ""),
        provider="ec2",
        reference=found["ImageId"],
        digest=files.digest_of([content.encode()]),
        size=sum(int(one["Ebs"].get("VolumeSize", 0)) << 30 for one in _volumes(found)),
        baked_at=datetime.now(UTC),
        handle=handle,
    )


def snapshots_of(found: Mapping[str, Any]) -> list[str]:
    """The snapshots an AMI is made of; none are known while it is pending."""
    ids = (one["Ebs"].get("SnapshotId") for one in _volumes(found))
    return [str(id) for id in ids if id]


def _volumes(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in found.get("BlockDeviceMappings", ()) if "Ebs" in one]


def discard(client: Any, marks: Mapping[str, str]) -> None:
    """Remove every AMI and snapshot with these tags that is still in quarantine.

    Raises:
        DestroyError: One can't be removed.
    """
    filters = [{"Name": f"tag:{key}", "Values": [value]} for key, value in marks.items()]
    filters.append({"Name": f"tag:{STATE}", "Values": [QUARANTINED]})
    for image in client.describe_images(Owners=["self"], Filters=filters)["Images"]:
        remove(client, image)
    for snapshot in client.describe_snapshots(OwnerIds=["self"], Filters=filters)["Snapshots"]:
        _delete_snapshot(client, snapshot["SnapshotId"])


def remove(client: Any, found: Mapping[str, Any]) -> None:
    """Deregister an AMI, here and where it was copied to, and delete the snapshots.

    Raises:
        DestroyError: Something of it remains.
    """
    for there, copied in copies_of(found):
        _remove(there, copied)
    _remove(client, found)


def copies_of(found: Mapping[str, Any]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """The copies of an AMI, or of the AMI that a snapshot is of: each with its region's client."""
    marks = tags_of(found)
    for region in marks.get(COPIES, "").split():
        there = aws.client("ec2", region)
        for state in (VERIFIED, QUARANTINED):
            for copied in of_key(there, marks.get(KEY, ""), state):
                if tags_of(copied).get(labels.ID) == marks.get(labels.ID):
                    yield there, copied


def in_region(client: Any, image: Image, region: str) -> str:
    """The AMI of an image in a region: itself, or the copy that was made of it.

    Raises:
        LaunchError: It is in another, and no copy is in this one.
    """
    home = image.handle.get("region", region)
    if home == region:
        return image.reference
    if found := of_key(client, image.key, VERIFIED):
        return str(found[0]["ImageId"])
    raise LaunchError(
        f"the image {image.name!r} is in {home}, and was not copied to {region}: name that in "
        f"copy-to of images.{image.name}, and bake it again; of one that was baked elsewhere, give "
        "the region's own reference"
    )


def remove_snapshots(client: Any, key: str) -> None:
    """Delete the snapshots that were made under a key, and that no AMI has any more.

    Raises:
        DestroyError: One can't be deleted.
    """
    filters = [{"Name": f"tag:{KEY}", "Values": [key]}]
    for snapshot in client.describe_snapshots(OwnerIds=["self"], Filters=filters)["Snapshots"]:
        for there, copied in copies_of(snapshot):
            _remove(there, copied)
        _delete_snapshot(client, snapshot["SnapshotId"])


def _remove(client: Any, found: Mapping[str, Any]) -> None:
    from botocore.exceptions import ClientError

    try:
        client.deregister_image(ImageId=found["ImageId"])
    except ClientError as error:
        if aws.code(error) not in _GONE:
            raise DestroyError(f"the AMI {found['ImageId']} can't be removed: {error}") from error
    for snapshot in snapshots_of(found):
        _delete_snapshot(client, snapshot)


def _delete_snapshot(client: Any, id: str) -> None:
    """Delete a snapshot; the AMI that used it lets go of it a moment after it is gone."""
    from botocore.exceptions import ClientError

    deadline = time.monotonic() + LETTING_GO
    while True:
        try:
            client.delete_snapshot(SnapshotId=id)
        except ClientError as error:
            found = aws.code(error)
            if found == "InvalidSnapshot.InUse" and time.monotonic() < deadline:
                time.sleep(POLL)
                continue
            if found not in _GONE:
                raise DestroyError(f"the snapshot {id} can't be deleted: {error}") from error
        return


def _newest(base: BaseQuery, region: str | None) -> str:
    with aws.explained():
        found = aws.client("ec2", region).describe_images(
            Owners=[base.owner],
            Filters=[
                {"Name": "name", "Values": [base.name]},
                {"Name": "architecture", "Values": [base.architecture]},
                {"Name": "state", "Values": ["available"]},
            ],
        )["Images"]
    if not found:
        raise ConfigurationError(
            f"base: {base.owner} has no available image called {base.name!r} for "
            f"{base.architecture} in this region"
        )
    newest = max(found, key=lambda image: (image["CreationDate"], image["ImageId"]))
    return str(newest["ImageId"])


def _looked(client: Any, id: str) -> Mapping[str, Any]:
    """An AMI; one that can't be seen has a state that says so."""
    from botocore.exceptions import ClientError

    try:
        return described(client, id) or {"State": _NOT_VISIBLE}
    except ClientError as error:
        if aws.code(error) in aws.THROTTLED:
            return {"State": "not known, as AWS has too much to do"}
        raise
