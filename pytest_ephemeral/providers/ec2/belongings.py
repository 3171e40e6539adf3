"""Everything in EC2 that carries our labels: finding it, and removing it in an order that works."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from pytest_ephemeral import aws, labels
from pytest_ephemeral.errors import DestroyError, LaunchError
from pytest_ephemeral.providers import Owned
from pytest_ephemeral.providers.ec2 import amis, groups, transfers
from pytest_ephemeral.providers.ec2.fleet import Instance, state
from pytest_ephemeral.providers.ec2.tagging import (
    KEY,
    PROCESS,
    QUARANTINED,
    STATE,
    TRANSFER,
    is_dead,
    labels_of,
    latest,
    tags_of,
)

#: What CloudFormation has made carries its stack's tags, and is the stack's to remove.
_OF_A_STACK: Final = "aws:cloudformation:stack-id"

#: Seconds between looks at instances that end, and in which they do.
POLL: Final = 2.0
ENDING: Final = 600

_MISSING: Final = frozenset({"InvalidInstanceID.NotFound"})

#: Where subnets are: neither their VPC nor their addresses ever change.
_subnets: dict[tuple[int, str], tuple[str, str]] = {}
_subnets_lock = threading.Lock()


def owned(client: Any) -> Iterator[Owned]:
    """All of it, by environment or bake; nothing younger than this look, nothing verified."""
    scan = datetime.now(UTC)
    found: dict[str, list[tuple[str, dict[str, str]]]] = defaultdict(list)
    for name, resource in _resources(client, scan):
        marks = tags_of(resource)
        if _OF_A_STACK not in marks and marks.get(labels.ID):
            found[marks[labels.ID]].append((name, marks))
    for id, parts in sorted(found.items()):
        tags = [marks for _, marks in parts]
        expires = latest(one[labels.EXPIRES] for one in tags if labels.EXPIRES in one)
        processes = {one[PROCESS] for one in tags if PROCESS in one}
        yield Owned(
            id=id,
            labels={**labels_of(tags[0]), labels.EXPIRES: expires},
            detail=", ".join(name for name, _ in parts),
            abandoned=bool(processes) and all(map(is_dead, processes)),
        )


def remove(client: Any, id: str) -> None:
    """Remove all that carries an id, of an environment or of a bake, but what was verified.

    Raises:
        DestroyError: Something remains; says what.
    """
    remove_running(client, id)
    amis.discard(client, {labels.ID: id})


def remove_running(client: Any, id: str) -> None:
    """Remove all that carries an id but images and snapshots.

    Raises:
        DestroyError: Something remains; says what.
    """
    end(client, [one["InstanceId"] for one in instances_of(client, id)], id)
    for group in _groups(client, id):
        if transfer := tags_of(group).get(TRANSFER):
            transfers.remove(transfer)
        groups.delete(client, group["GroupId"])
    for kind in ("network_interface", "volume"):
        _remove_free(client, kind, id)


def of_bakes(client: Any, key: str) -> dict[str, dict[str, str]]:
    """What bakes of a key have made and not finished: the tags of each, by its id."""
    filters = [{"Name": f"tag:{KEY}", "Values": [key]}]
    found = [one for one in _instances(client, filters) if state(one) != "terminated"]
    found += client.describe_security_groups(Filters=filters)["SecurityGroups"]
    filters.append({"Name": f"tag:{STATE}", "Values": [QUARANTINED]})
    found += client.describe_images(Owners=["self"], Filters=filters)["Images"]
    found += client.describe_snapshots(OwnerIds=["self"], Filters=filters)["Snapshots"]
    marks = map(tags_of, found)
    return {one[labels.ID]: one for one in marks if labels.ID in one}


def running_from(client: Any, image: str) -> list[str]:
    """The instances that were launched from an AMI and have not ended."""
    filters = [{"Name": "image-id", "Values": [image]}]
    found = _instances(client, filters)
    return [str(one["InstanceId"]) for one in found if state(one) != "terminated"]


def described(client: Any, instance: str) -> Instance | None:
    """One instance; None while, or when, it can't be seen."""
    return next(iter(_described(client, [instance])), None)


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


def instances_of(client: Any, id: str) -> list[Instance]:
    """The instances that carry an id and have not ended."""
    filters = [{"Name": f"tag:{labels.ID}", "Values": [id]}]
    return [one for one in _instances(client, filters) if state(one) != "terminated"]


def end(client: Any, ids: list[str], id: str) -> None:
    """Terminate instances, and wait until they have.

    Args:
        client: Of EC2.
        ids: Which.
        id: Whose, for the message.

    Raises:
        DestroyError: They have not.
    """
    from botocore.exceptions import ClientError

    if not ids:
        return
    try:
        client.terminate_instances(InstanceIds=ids)
    except ClientError as error:
        if aws.code(error) in _MISSING:
            return
        raise remaining(id, ids, str(error)) from error
    deadline = time.monotonic() + ENDING
    while not all(state(one) == "terminated" for one in _described(client, ids)):
        if time.monotonic() > deadline:
            raise remaining(id, ids, "they are still shutting down")
        time.sleep(POLL)


def remaining(id: str, ids: list[str], why: str) -> DestroyError:
    """The error for instances that have not ended."""
    names = " ".join(ids)
    return DestroyError(
        f"{id}: the instances {names} have not ended: {why}. See "
        f"`aws ec2 describe-instances --instance-ids {names}`, then: pytest-ephemeral reap"
    )


def _resources(client: Any, scan: datetime) -> Iterator[tuple[str, Mapping[str, Any]]]:
    ours = {"Name": "tag-key", "Values": [labels.ID]}
    for instance in _instances(client, [ours]):
        if state(instance) != "terminated" and instance["LaunchTime"] < scan:
            yield f"instance {instance['InstanceId']}", instance
    for group in client.describe_security_groups(Filters=[ours])["SecurityGroups"]:
        yield f"security group {group['GroupId']}", group
    free = {"Name": "status", "Values": ["available"]}
    for volume in client.describe_volumes(Filters=[ours, free])["Volumes"]:
        if volume["CreateTime"] < scan:
            yield f"volume {volume['VolumeId']}", volume
    for interface in client.describe_network_interfaces(Filters=[ours, free])["NetworkInterfaces"]:
        yield f"network interface {interface['NetworkInterfaceId']}", _with_tags(interface)
    unverified = {"Name": f"tag:{STATE}", "Values": [QUARANTINED]}
    for image in client.describe_images(Owners=["self"], Filters=[unverified])["Images"]:
        yield f"image {image['ImageId']}", image
    pages = client.describe_snapshots(OwnerIds=["self"], Filters=[unverified])
    for snapshot in pages["Snapshots"]:
        yield f"snapshot {snapshot['SnapshotId']}", snapshot


def _instances(client: Any, filters: list[dict[str, Any]]) -> Iterator[Instance]:
    for page in client.get_paginator("describe_instances").paginate(Filters=filters):
        for reservation in page["Reservations"]:
            yield from reservation["Instances"]


def _described(client: Any, ids: list[str]) -> list[Instance]:
    return list(_instances(client, [{"Name": "instance-id", "Values": ids}]))


def _groups(client: Any, id: str) -> list[Mapping[str, Any]]:
    filters = [{"Name": f"tag:{labels.ID}", "Values": [id]}]
    return list(client.describe_security_groups(Filters=filters)["SecurityGroups"])


def _remove_free(client: Any, kind: str, id: str) -> None:
    """Delete what an instance has left behind, of one kind."""
    from botocore.exceptions import ClientError

    name = {
        "volume": ("Volumes", "VolumeId"),
        "network_interface": ("NetworkInterfaces", "NetworkInterfaceId"),
    }[kind]
    filters = [
        {"Name": f"tag:{labels.ID}", "Values": [id]},
        {"Name": "status", "Values": ["available"]},
    ]
    found = getattr(client, f"describe_{kind}s")(Filters=filters)[name[0]]
    for one in found:
        try:
            getattr(client, f"delete_{kind}")(**{name[1]: one[name[1]]})
        except ClientError as error:
            if not aws.code(error).endswith(".NotFound"):
                raise DestroyError(f"{id}: {one[name[1]]} can't be deleted: {error}") from error


def _with_tags(interface: Mapping[str, Any]) -> Mapping[str, Any]:
    """Network interfaces have their tags under a name of their own."""
    return {**interface, "Tags": interface.get("TagSet", ())}
