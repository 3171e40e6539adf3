"""The AMIs of bakes: create them, wait for them, find them by key, copy and tag them."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from pytest_ephemeral import aws, files, labels
from pytest_ephemeral.errors import BakeError, ConfigurationError, LaunchError
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers import waiting
from pytest_ephemeral.providers.ec2.tables import BaseQuery
from pytest_ephemeral.providers.ec2.tags import (
    COPIES,
    KEY,
    QUARANTINED,
    RECIPE,
    STATE,
    UNRECORDED,
    VERIFIED,
    tag_specifications,
    tags_of,
    to_tags,
)

#: Seconds for which an AMI may be pending: large volumes take most of an hour.
PENDING: Final = 3600.0
POLL: Final = 2.0
#: Seconds after which a new resource is visible at the latest.
UNSEEN: Final = 60.0
#: Seconds between lines of progress.
SAY_AGAIN: Final = 15.0
#: In an image's handle: the volumes without ``DeleteOnTermination``, each with its size in GiB.
OUTLIVING: Final = "outliving-volumes"

_UNRECORDED: Final = {"Name": f"tag:{STATE}", "Values": [QUARANTINED, UNRECORDED]}
_NOT_VISIBLE: Final = "not visible yet"
#: Shown in place of an AMI's state while it can't be read.
UNKNOWN: Final = "unknown, as AWS throttles the request"
GONE: Final = frozenset(
    {"InvalidAMIID.NotFound", "InvalidAMIID.Unavailable", "InvalidSnapshot.NotFound"}
)


def resolve(base: str | BaseQuery, region: str | None) -> str:
    """The id of the AMI that a base (an id, ``ssm:PARAMETER`` or a query) stands for today.

    Raises:
        ConfigurationError: There is no such AMI or parameter.
    """
    from botocore.exceptions import ClientError

    if isinstance(base, BaseQuery):
        return _newest(base, region)
    if not base.startswith("ssm:"):
        return base
    name = base.removeprefix("ssm:")
    try:
        with aws.translate_errors():
            found = aws.client("ssm", region).get_parameter(Name=name)
    except ClientError as error:
        raise ConfigurationError(f"base: no parameter {name!r} in SSM: {error}") from error
    return str(found["Parameter"]["Value"])


def describe(client: Any, id: str) -> Mapping[str, Any] | None:
    """EC2's description of an AMI; None if there is no such AMI."""
    from botocore.exceptions import ClientError

    try:
        found = client.describe_images(ImageIds=[id])["Images"]
    except ClientError as error:
        if aws.code(error) in GONE or aws.code(error) == "InvalidAMIID.Malformed":
            return None
        raise
    return found[0] if found else None


def find_by_key(client: Any, key: str, *states: str) -> list[Mapping[str, Any]]:
    """The AMIs of this account with a key, in one of the given states, sorted by id."""
    wanted = {f"tag:{KEY}": [key], f"tag:{STATE}": list(states)}
    filters = [{"Name": name, "Values": values} for name, values in wanted.items()]
    return sorted(_images(client, filters), key=lambda image: image["ImageId"])


def find_unrecorded(client: Any, ours: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The AMIs that match a filter and are in no catalog."""
    return _images(client, [ours, _UNRECORDED])


def find_unrecorded_snapshots(client: Any, ours: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The snapshots that match a filter and whose AMI is in no catalog."""
    return snapshots(client, [ours, _UNRECORDED])


def is_verified(found: Mapping[str, Any]) -> bool:
    """Whether an AMI is verified, in a catalog or not."""
    return tags_of(found).get(STATE) in {UNRECORDED, VERIFIED}


def create(client: Any, instance: str, name: str, tags: Mapping[str, str]) -> str:
    """Create the AMI of a stopped instance, in quarantine; return its id while it is pending.

    Args:
        client: An EC2 client.
        instance: The instance's id.
        name: The AMI's name, unique to this bake: a repeated request finds the AMI by it.
        tags: The tags of the AMI and of its snapshots.

    Raises:
        BakeError: AWS reports that the name is taken, but does not list the AMI.
    """
    from botocore.exceptions import ClientError

    try:
        created = client.create_image(
            InstanceId=instance,
            Name=name,
            TagSpecifications=tag_specifications({**tags, STATE: QUARANTINED}, "image", "snapshot"),
        )
        return str(created["ImageId"])
    except ClientError as error:
        if aws.code(error) != "InvalidAMIName.Duplicate":
            raise
    wanted = [{"Name": "name", "Values": [name]}]
    found = waiting.wait_until(lambda: _images(client, wanted), within=UNSEEN, every=POLL)
    if not found:
        raise BakeError(f"the AMI {name} exists, but AWS does not list it")
    return str(found[0]["ImageId"])


def wait(
    client: Any, id: str, say: Callable[[str], None], *, within: float = PENDING
) -> Mapping[str, Any]:
    """Wait until an AMI is available, and describe it; boto3's waiter waits ten minutes only.

    Args:
        client: An EC2 client.
        id: The AMI's id.
        say: Called every ``SAY_AGAIN`` seconds with the AMI's state and the time waited.
        within: Seconds to wait at most.

    Raises:
        BakeError: The AMI failed, or was not available in time.
    """
    started = reported = seen = time.monotonic()

    def check() -> Mapping[str, Any] | None:
        nonlocal reported, seen
        found, now = look(client, id), time.monotonic()
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
        if now - reported > SAY_AGAIN:
            say(f"the AMI {id} is {state}, {now - started:.0f} s")
            reported = now
        return None

    found = waiting.wait_until(check, within=math.inf, every=POLL)
    assert found is not None
    return found


def verify(client: Any, found: Mapping[str, Any]) -> None:
    """Tag an AMI and its snapshots as verified, and not yet in a catalog."""
    tag(client, found, {STATE: UNRECORDED})


def record(client: Any, found: Mapping[str, Any]) -> None:
    """Tag an AMI and its copies as cataloged, so that ``reap`` ignores them.

    The copies are tagged first: after an interruption, the AMI's own tag shows that work is left.
    """
    tags = {STATE: VERIFIED, labels.EXPIRES: labels.NEVER}
    for there, one in [*copies_of(found), (client, found)]:
        if not tags_of(one).items() >= tags.items():
            tag(there, one, tags)


def copy(
    found: Mapping[str, Any], source: str, regions: Sequence[str], say: Callable[[str], None]
) -> None:
    """Copy an AMI to other regions, and wait until the copies are available.

    The AMI is tagged with the regions first, so that its copies are found after an interruption.
    """
    if not regions:
        return
    client = aws.client("ec2", source)
    known = dict.fromkeys([*tags_of(found).get(COPIES, "").split(), *regions])
    resources = [found["ImageId"], *snapshots_of(found)]
    client.create_tags(Resources=resources, Tags=to_tags({COPIES: " ".join(known)}))
    copies = {region: _copy(found, source, region) for region in regions}
    for region, id in copies.items():
        say(f"copying it to {region} as {id}")
        there = aws.client("ec2", region)
        copied = wait(there, id, say)
        if tags_of(copied).get(STATE) == QUARANTINED:
            verify(there, copied)


def as_image(found: Mapping[str, Any], region: str, prefix: str) -> Image:
    """The catalog's record of an AMI.

    An AMI can't be changed, so its digest is made from its id and the ids of its snapshots.
    """
    tags = tags_of(found)
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
        name=tags.get(RECIPE, found.get("Name", "")),
        key=tags.get(KEY, ""),
        provider="ec2",
        reference=found["ImageId"],
        digest=files.digest_of([content.encode()]),
        size=sum(int(one["Ebs"].get("VolumeSize", 0)) << 30 for one in _volumes(found)),
        baked_at=datetime.now(UTC),
        handle=handle,
    )


def snapshots_of(found: Mapping[str, Any]) -> list[str]:
    """The ids of an AMI's snapshots; EC2 may not list them while the AMI is pending."""
    ids = (one["Ebs"].get("SnapshotId") for one in _volumes(found))
    return [str(id) for id in ids if id]


def _volumes(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in found.get("BlockDeviceMappings", ()) if "Ebs" in one]


def copies_of(found: Mapping[str, Any]) -> list[tuple[Any, Mapping[str, Any]]]:
    """The copies of an AMI (or of a snapshot's AMI), each with a client of its region."""
    return [
        (there, one)
        for there in copy_clients(found)
        for one in _images(there, [bake_filter(found)])
    ]


def find_in_region(client: Any, image: Image, region: str) -> str:
    """The id of an image's AMI in a region: the AMI itself, or its copy.

    Raises:
        LaunchError: The AMI is in another region, and has no copy in this one.
    """
    home = image.handle.get("region", region)
    if home == region:
        return image.reference
    if found := find_by_key(client, image.key, VERIFIED):
        return str(found[0]["ImageId"])
    raise LaunchError(
        f"the image {image.name!r} is in {home}, and was not copied to {region}: add it to "
        f"copy-to of images.{image.name}, and bake it again; for an image that was baked "
        "elsewhere, set that region's own reference"
    )


def _copy(found: Mapping[str, Any], source: str, region: str) -> str:
    """Start copying an AMI to a region, unless a copy exists; the copy's id."""
    client = aws.client("ec2", region)
    if there := _images(client, [bake_filter(found)]):
        return str(there[0]["ImageId"])
    tags = {key: value for key, value in tags_of(found).items() if not key.startswith("aws:")}
    answer = client.copy_image(
        Name=found["Name"],
        SourceImageId=found["ImageId"],
        SourceRegion=source,
        # New each time: for a used token, AWS returns the earlier copy, even if that is deleted.
        ClientToken=secrets.token_hex(32),
        TagSpecifications=tag_specifications({**tags, STATE: QUARANTINED}, "image", "snapshot"),
    )
    return str(answer["ImageId"])


def copy_clients(found: Mapping[str, Any]) -> list[Any]:
    """An EC2 client for each region that an AMI is copied to."""
    return [aws.client("ec2", region) for region in tags_of(found).get(COPIES, "").split()]


def bake_filter(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """A filter for all resources of the bake that created an AMI or snapshot, in any region."""
    return {"Name": f"tag:{labels.ID}", "Values": [tags_of(found).get(labels.ID, "")]}


def tag(client: Any, found: Mapping[str, Any], tags: Mapping[str, str]) -> None:
    """Tag an AMI and its snapshots."""
    resources = [found["ImageId"], *snapshots_of(found)]
    client.create_tags(Resources=resources, Tags=to_tags(tags))


def _images(client: Any, filters: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    pages = client.get_paginator("describe_images").paginate(Owners=["self"], Filters=filters)
    return [image for page in pages for image in page["Images"]]


def snapshots(client: Any, filters: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """This account's snapshots that match all filters."""
    pages = client.get_paginator("describe_snapshots").paginate(OwnerIds=["self"], Filters=filters)
    return [snapshot for page in pages for snapshot in page["Snapshots"]]


def _newest(base: BaseQuery, region: str | None) -> str:
    with aws.translate_errors():
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


def look(client: Any, id: str) -> Mapping[str, Any]:
    """EC2's description of an AMI.

    While it is not visible, or the request is throttled, the result has only a ``State``.
    """
    found = aws.poll(client, lambda polling: [describe(polling, id)])
    return {"State": UNKNOWN} if found is None else found[0] or {"State": _NOT_VISIBLE}
