"""Find the resources in EC2 that this tool has created, by their tags and client tokens."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from pytest_ephemeral import aws, labels, machine
from pytest_ephemeral.errors import LaunchError
from pytest_ephemeral.providers.ec2 import amis, security_groups
from pytest_ephemeral.providers.ec2.instance_watcher import Instance, state
from pytest_ephemeral.providers.ec2.tags import (
    OF_A_STACK,
    PROCESS,
    has_our_token,
    labels_of,
    latest_expiry,
    read_clock,
    tags_of,
)
from pytest_ephemeral.providers.protocol import Owned

#: The largest number of values that EC2 accepts in a filter.
VALUES: Final = 200

Filter = Mapping[str, Any]

#: The VPC and the first address of each subnet, which never change.
_subnets: dict[tuple[int, str], tuple[str, str]] = {}
_subnets_lock = threading.Lock()


class Resource(NamedTuple):
    """One resource that this tool has created.

    Attributes:
        name: Its kind and id, for people.
        tags: Its tags.
        image: Its id if it is a verified AMI, which may be about to be cataloged; or empty.
    """

    name: str
    tags: dict[str, str]
    image: str = ""


def list_owned(
    client: Any, tag: str = labels.ID, values: Collection[str] | None = None
) -> list[Owned]:
    """All resources of environments and bakes, grouped by id.

    Resources that are created while this lists are left out, and so are cataloged AMIs.

    Args:
        client: An EC2 client.
        tag: The name of a tag that the resources must have.
        values: The tag's possible values; None for any.
    """
    found: dict[str, list[Resource]] = defaultdict(list)
    seen_at = datetime.max.replace(tzinfo=UTC)
    for wanted in filters(tag, values):
        pages = client.get_paginator("describe_instances").paginate(Filters=[wanted])
        instances, scan = _read_scan(list(pages))
        seen_at = min(seen_at, scan)
        for resource in _resources(client, wanted, instances, scan):
            found[resource.tags[labels.ID]].append(resource)
    region = str(client.meta.region_name)
    return [_to_owned(id, parts, region, seen_at) for id, parts in sorted(found.items())]


def _to_owned(id: str, parts: Sequence[Resource], region: str, seen_at: datetime) -> Owned:
    tags = [part.tags for part in parts]
    expires = latest_expiry(one[labels.EXPIRES] for one in tags if labels.EXPIRES in one)
    processes = {one[PROCESS] for one in tags if PROCESS in one}
    return Owned(
        id=id,
        labels={**labels_of(tags[0]), labels.EXPIRES: expires},
        detail=", ".join(part.name for part in parts),
        abandoned=bool(processes) and all(map(machine.is_gone, processes)),
        region=region,
        seen_at=seen_at,
        image=next((part.image for part in parts if part.image), ""),
    )


def find_instances(client: Any, ids: Collection[str]) -> list[Instance]:
    """The instances of some ids that have not ended."""
    return [
        one
        for wanted in filters(labels.ID, ids)
        for one in _instances(client, [wanted])
        if state(one) != "terminated" and has_our_token(one)
    ]


def list_instances(client: Any) -> list[str]:
    """The ids of all instances that this tool has launched and that have not ended."""
    found = _instances(client, filters(labels.ID, None))
    return [str(one["InstanceId"]) for one in found if state(one) != "terminated" and _is_ours(one)]


def find_groups(client: Any, ids: Collection[str]) -> list[Mapping[str, Any]]:
    """The security groups of some ids that no instance of another id uses."""
    found = [
        one
        for chunk in _chunks(ids)
        for one in security_groups.describe(client, f"tag:{labels.ID}", chunk)
        if one["GroupName"] == security_groups.name_of(tags_of(one)[labels.ID])
    ]
    return _keep_unused(client, found) if found else []


def find_shared_groups(client: Any, ids: Collection[str]) -> list[Mapping[str, Any]]:
    """Those of some security groups that are a run's shared groups, and that nothing uses.

    Args:
        client: An EC2 client.
        ids: The ids of the groups.
    """
    found = [
        one
        for chunk in _chunks(ids)
        for one in security_groups.describe(client, "group-id", chunk)
        if security_groups.is_shared(one) and tags_of(one).get(labels.EXPIRES) != labels.NEVER
    ]
    return _keep_unused(client, found) if found else []


def find_unattached(client: Any, kind: str, wanted: Filter) -> list[Mapping[str, Any]]:
    """Volumes or network interfaces that are not attached, each with ``Id`` and ``Tags``.

    Args:
        client: An EC2 client.
        kind: ``volume`` or ``network_interface``.
        wanted: The filter for them.
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


def find_running_from(client: Any, image: str) -> list[str]:
    """The ids of the instances that were launched from an AMI and have not ended."""
    found = _instances(client, [{"Name": "image-id", "Values": [image]}])
    return [str(one["InstanceId"]) for one in found if state(one) != "terminated"]


def describe_instances(client: Any, ids: Sequence[str]) -> list[Instance]:
    """The instances with some ids; those that EC2 does not list (yet) are missing."""
    return [
        one
        for chunk in _chunks(ids)
        for one in _instances(client, [{"Name": "instance-id", "Values": chunk}])
    ]


def group_ids(instance: Instance) -> set[str]:
    """The ids of the security groups that an instance is in."""
    interfaces = instance.get("NetworkInterfaces", ())
    found = [*instance.get("SecurityGroups", ()), *(g for i in interfaces for g in i["Groups"])]
    return {str(group["GroupId"]) for group in found}


def filters(tag: str, values: Collection[str] | None) -> list[Filter]:
    """Filters for a tag: several if there are more values than one filter may have."""
    if values is None:
        return [{"Name": "tag-key", "Values": [tag]}]
    return [{"Name": f"tag:{tag}", "Values": chunk} for chunk in _chunks(values)]


def find_vpc(client: Any, subnet: str) -> tuple[str, str]:
    """The VPC of a subnet, and the subnet's first address; looked up once for each subnet.

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
    for volume in find_unattached(client, "volume", ours):
        if volume["CreateTime"] < scan and _is_labelled(volume):
            yield Resource(f"volume {volume['Id']}", tags_of(volume))
    for interface in find_unattached(client, "network_interface", ours):
        if _is_labelled(interface):
            yield Resource(f"network interface {interface['Id']}", tags_of(interface))
    yield from _images(client, ours, scan)


def _images(client: Any, ours: Filter, scan: datetime) -> Iterator[Resource]:
    for image in amis.find_unrecorded(client, ours):
        if datetime.fromisoformat(image["CreationDate"]) < scan and _is_labelled(image):
            finished = image["ImageId"] if amis.is_verified(image) else ""
            yield Resource(f"image {image['ImageId']}", tags_of(image), finished)
    for snapshot in amis.find_unrecorded_snapshots(client, ours):
        if snapshot["StartTime"] < scan and _is_labelled(snapshot):
            yield Resource(f"snapshot {snapshot['SnapshotId']}", tags_of(snapshot))


def _groups(client: Any, ours: Filter) -> Iterator[Resource]:
    pages = client.get_paginator("describe_security_groups").paginate(Filters=[ours])
    found = [
        group
        for page in pages
        for group in page["SecurityGroups"]
        if group["GroupName"] == security_groups.name_of(tags_of(group).get(labels.ID, ""))
    ]
    for group in _keep_unused(client, found):
        yield Resource(f"security group {group['GroupId']}", tags_of(group))


def _keep_unused(client: Any, found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of some groups that no instance of another id is in."""
    used: set[str] = set()
    owners = {group["GroupId"]: tags_of(group).get(labels.ID) for group in found}
    for chunk in _chunks(list(owners)):
        for instance in _instances(client, [{"Name": "instance.group-id", "Values": chunk}]):
            if state(instance) != "terminated":
                id = tags_of(instance).get(labels.ID)
                used |= {one for one in group_ids(instance) if owners.get(one) != id}
    return [group for group in found if group["GroupId"] not in used]


def _is_ours(instance: Instance) -> bool:
    """Whether this tool launched an instance, and not as part of a stack."""
    return _is_labelled(instance) and has_our_token(instance)


def _is_labelled(resource: Mapping[str, Any]) -> bool:
    tags = tags_of(resource)
    return OF_A_STACK not in tags and bool(tags.get(labels.ID))


def _instances(client: Any, filters: Sequence[Filter]) -> Iterator[Instance]:
    for page in client.get_paginator("describe_instances").paginate(Filters=filters):
        for reservation in page["Reservations"]:
            yield from reservation["Instances"]


def _chunks(values: Collection[str]) -> Iterator[list[str]]:
    known = sorted(values)
    for start in range(0, len(known), VALUES):
        yield known[start : start + VALUES]


def _read_scan(pages: Sequence[Mapping[str, Any]]) -> tuple[list[Instance], datetime]:
    """The instances on some pages, and the time of AWS's answer."""
    found = [one for page in pages for each in page["Reservations"] for one in each["Instances"]]
    return found, read_clock(pages[0])
