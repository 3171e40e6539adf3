"""Everything in EC2 that carries our labels, and was made by us: finding it."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from pytest_ephemeral import aws, labels, machine
from pytest_ephemeral.errors import LaunchError
from pytest_ephemeral.providers.ec2 import amis, groups, ingress
from pytest_ephemeral.providers.ec2.fleet import Instance, state
from pytest_ephemeral.providers.ec2.tagging import (
    OF_A_STACK,
    PROCESS,
    clock,
    labels_of,
    latest,
    launched_by_us,
    tags_of,
)
from pytest_ephemeral.providers.protocol import Owned

#: So many values a filter may have.
VALUES: Final = 200

Filter = Mapping[str, Any]

#: Where subnets are: neither their VPC nor their addresses ever change.
_subnets: dict[tuple[int, str], tuple[str, str]] = {}
_subnets_lock = threading.Lock()


class Resource(NamedTuple):
    """One thing of ours.

    Attributes:
        name: What it is, for people.
        marks: Its tags.
        image: Its id, if it is an AMI that is verified and may not be recorded yet.
    """

    name: str
    marks: dict[str, str]
    image: str = ""


def owned(
    client: Any,
    tag: str = labels.ID,
    values: Collection[str] | None = None,
    is_over: Callable[[str], bool] = machine.is_gone,
) -> list[Owned]:
    """All of it, by environment or bake; nothing younger than this look, nothing recorded.

    Args:
        client: Of EC2.
        tag: What it must be tagged with.
        values: With one of these; None for any.
        is_over: Whether a process that bakes, or shares a group, is known to be gone.
    """
    found: dict[str, list[Resource]] = defaultdict(list)
    looked = datetime.max.replace(tzinfo=UTC)
    for wanted in filters(tag, values):
        pages = client.get_paginator("describe_instances").paginate(Filters=[wanted])
        instances, scan = _timed(list(pages))
        looked = min(looked, scan)
        for resource in _resources(client, wanted, instances, scan):
            found[resource.marks[labels.ID]].append(resource)
    region = str(client.meta.region_name)
    return [_owned(id, parts, is_over, region, looked) for id, parts in sorted(found.items())]


def _owned(
    id: str,
    parts: Sequence[Resource],
    is_over: Callable[[str], bool],
    region: str,
    looked: datetime,
) -> Owned:
    tags = [part.marks for part in parts]
    expires = latest(one[labels.EXPIRES] for one in tags if labels.EXPIRES in one)
    processes = {one[PROCESS] for one in tags if PROCESS in one}
    return Owned(
        id=id,
        labels={**labels_of(tags[0]), labels.EXPIRES: expires},
        detail=", ".join(part.name for part in parts),
        abandoned=bool(processes) and all(map(is_over, processes)),
        region=region,
        seen_at=looked,
        image=next((part.image for part in parts if part.image), ""),
    )


def instances_of(client: Any, ids: Collection[str]) -> list[Instance]:
    """The instances that were launched under some ids and have not ended."""
    return [
        one
        for wanted in filters(labels.ID, ids)
        for one in _instances(client, [wanted])
        if state(one) != "terminated" and launched_by_us(one)
    ]


def groups_for(client: Any, ids: Collection[str]) -> list[Mapping[str, Any]]:
    """The groups of some ids, which nothing is in that has another."""
    found = [
        one
        for chunk in _chunks(ids)
        for one in groups.described(client, f"tag:{labels.ID}", chunk)
        if one["GroupName"] == groups.name_of(tags_of(one)[labels.ID])
    ]
    return _unused(client, found) if found else []


def shared_groups(client: Any, ids: Collection[str]) -> list[Mapping[str, Any]]:
    """Of some groups, those that a run's environments have shared, and that nothing is in."""
    found = [
        one
        for chunk in _chunks(ids)
        for one in groups.described(client, "group-id", chunk)
        if ingress.is_shared(one) and tags_of(one).get(labels.EXPIRES) != labels.NEVER
    ]
    return _unused(client, found) if found else []


def free(client: Any, kind: str, wanted: Filter) -> list[Mapping[str, Any]]:
    """Volumes or network interfaces that an instance has left behind, with ``Id`` and ``Tags``.

    Args:
        client: Of EC2.
        kind: ``volume`` or ``network_interface``.
        wanted: Which of them.
    """
    many, name, tags = {
        "volume": ("Volumes", "VolumeId", "Tags"),
        "network_interface": ("NetworkInterfaces", "NetworkInterfaceId", "TagSet"),
    }[kind]
    pages = client.get_paginator(f"describe_{kind}s").paginate(
        Filters=[wanted, {"Name": "status", "Values": ["available"]}]
    )
    return [
        {**one, "Id": one[name], "Tags": one.get(tags, ())} for page in pages for one in page[many]
    ]


def running_from(client: Any, image: str) -> list[str]:
    """The instances that were launched from an AMI and have not ended."""
    found = _instances(client, [{"Name": "image-id", "Values": [image]}])
    return [str(one["InstanceId"]) for one in found if state(one) != "terminated"]


def described(client: Any, ids: Sequence[str]) -> list[Instance]:
    """Instances by their ids; those that can't be seen, or not yet, are missing."""
    return [
        one
        for chunk in _chunks(ids)
        for one in _instances(client, [{"Name": "instance-id", "Values": chunk}])
    ]


def groups_of(instance: Instance) -> set[str]:
    """The groups that an instance is in."""
    interfaces = instance.get("NetworkInterfaces", ())
    found = [*instance.get("SecurityGroups", ()), *(g for i in interfaces for g in i["Groups"])]
    return {str(group["GroupId"]) for group in found}


def filters(tag: str, values: Collection[str] | None) -> list[Filter]:
    """What finds all with a tag, or with one of some values of it, in as many looks."""
    if values is None:
        return [{"Name": "tag-key", "Values": [tag]}]
    return [{"Name": f"tag:{tag}", "Values": chunk} for chunk in _chunks(values)]


def vpc_of(client: Any, subnet: str) -> tuple[str, str]:
    """The VPC that a subnet is in, and the first address of the subnet; asked for once.

    Raises:
        LaunchError: There is no such subnet.
    """
    from botocore.exceptions import ClientError

    with _subnets_lock:
        if (id(client), subnet) not in _subnets:
            try:
                (found,) = client.describe_subnets(SubnetIds=[subnet])["Subnets"]
            except ClientError as error:
                if not aws.code(error).startswith("InvalidSubnet"):
                    raise
                raise LaunchError(
                    f"there is no subnet {subnet} in {client.meta.region_name}: "
                    "see `aws ec2 describe-subnets`"
                ) from error
            _subnets[id(client), subnet] = (found["VpcId"], found["CidrBlock"].split("/")[0])
        return _subnets[id(client), subnet]


def _resources(
    client: Any, ours: Filter, instances: Sequence[Instance], scan: datetime
) -> Iterator[Resource]:
    for instance in instances:
        young = instance["LaunchTime"] >= scan
        if state(instance) != "terminated" and not young and _is_ours(instance):
            yield Resource(f"instance {instance['InstanceId']}", tags_of(instance))
    yield from _groups(client, ours)
    for volume in free(client, "volume", ours):
        if volume["CreateTime"] < scan and _is_labelled(volume):
            yield Resource(f"volume {volume['Id']}", tags_of(volume))
    for interface in free(client, "network_interface", ours):
        if _is_labelled(interface):
            yield Resource(f"network interface {interface['Id']}", tags_of(interface))
    yield from _images(client, ours, scan)


def _images(client: Any, ours: Filter, scan: datetime) -> Iterator[Resource]:
    for image in amis.unrecorded(client, ours):
        if datetime.fromisoformat(image["CreationDate"]) < scan and _is_labelled(image):
            finished = image["ImageId"] if amis.is_verified(image) else ""
            yield Resource(f"image {image['ImageId']}", tags_of(image), finished)
    for snapshot in amis.unrecorded_snapshots(client, ours):
        if snapshot["StartTime"] < scan and _is_labelled(snapshot):
            yield Resource(f"snapshot {snapshot['SnapshotId']}", tags_of(snapshot))


def _groups(client: Any, ours: Filter) -> Iterator[Resource]:
    pages = client.get_paginator("describe_security_groups").paginate(Filters=[ours])
    found = [
        group
        for page in pages
        for group in page["SecurityGroups"]
        if group["GroupName"] == groups.name_of(tags_of(group).get(labels.ID, ""))
    ]
    for group in _unused(client, found):
        yield Resource(f"security group {group['GroupId']}", tags_of(group))


def _unused(client: Any, found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of groups, those that no instance is in but one of the same id, which goes with it."""
    used: set[str] = set()
    owners = {group["GroupId"]: tags_of(group).get(labels.ID) for group in found}
    for chunk in _chunks(list(owners)):
        for instance in _instances(client, [{"Name": "instance.group-id", "Values": chunk}]):
            if state(instance) != "terminated":
                id = tags_of(instance).get(labels.ID)
                used |= {one for one in groups_of(instance) if owners.get(one) != id}
    return [group for group in found if group["GroupId"] not in used]


def _is_ours(instance: Instance) -> bool:
    """Whether it was launched under the id that it carries, and is no stack's."""
    return _is_labelled(instance) and launched_by_us(instance)


def _is_labelled(resource: Mapping[str, Any]) -> bool:
    marks = tags_of(resource)
    return OF_A_STACK not in marks and bool(marks.get(labels.ID))


def _instances(client: Any, filters: list[Filter]) -> Iterator[Instance]:
    for page in client.get_paginator("describe_instances").paginate(Filters=filters):
        for reservation in page["Reservations"]:
            yield from reservation["Instances"]


def _chunks(values: Collection[str]) -> Iterator[list[str]]:
    known = sorted(values)
    for start in range(0, len(known), VALUES):
        yield known[start : start + VALUES]


def _timed(pages: Sequence[Mapping[str, Any]]) -> tuple[list[Instance], datetime]:
    """The instances of some pages, and when they were looked at."""
    found = [one for page in pages for each in page["Reservations"] for one in each["Instances"]]
    return found, clock(pages[0])
