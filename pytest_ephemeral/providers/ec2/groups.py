"""Security groups: made so that asking twice makes one, and deleted when nothing is in them."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from pytest_ephemeral import aws
from pytest_ephemeral.errors import DestroyError, LaunchError
from pytest_ephemeral.providers.ec2.tables import source_of

#: Network interfaces linger after their instances: so long is tried to delete their group.
LINGER: Final = 330.0
PAUSE: Final = 2.0
#: Seconds in which a group that was just made becomes visible.
UNSEEN: Final = 60.0

#: AWS's own answer to who is asking; for a public address.
WHO_AM_I: Final = "https://checkip.amazonaws.com"

GONE: Final = frozenset(
    {"InvalidGroup.NotFound", "InvalidGroupId.NotFound", "InvalidSecurityGroupID.NotFound"}
)


def name_of(id: str) -> str:
    """What the group of an id is called: whoever knows the id finds it."""
    return f"pytest-ephemeral-{id}"


def ensure(
    client: Any,
    id: str,
    marks: Sequence[Mapping[str, str]],
    vpc: str | None,
    permissions: Sequence[Mapping[str, Any]],
) -> str:
    """Have a group that lets in what it is told, and nothing else.

    Args:
        client: Of EC2.
        id: Whose.
        marks: Its tags.
        vpc: Where; None for the default VPC.
        permissions: As ``AuthorizeSecurityGroupIngress`` takes them.

    Returns:
        Its id.
    """
    from botocore.exceptions import ClientError

    try:
        made = client.create_security_group(
            GroupName=name_of(id),
            Description=f"pytest-ephemeral {id}",
            TagSpecifications=[{"ResourceType": "security-group", "Tags": list(marks)}],
            **({} if vpc is None else {"VpcId": vpc}),
        )
        group = str(made["GroupId"])
    except ClientError as error:
        if aws.code(error) != "InvalidGroup.Duplicate":
            raise
        # Asked before, and the answer was lost: names are unique so that this can be told.
        group = _visible(client, id)
    if permissions:
        _authorize(client, group, permissions)
    return group


def described(client: Any, name: str, values: Collection[str]) -> list[Mapping[str, Any]]:
    """The groups that pass a filter, such as ``tag:name``, with one of some values."""
    pages = client.get_paginator("describe_security_groups").paginate(
        Filters=[{"Name": name, "Values": list(values)}]
    )
    return [group for page in pages for group in page["SecurityGroups"]]


def permissions_for(
    ingress: Iterable[str], ports: Iterable[int], target: str, *, public: bool
) -> list[dict[str, Any]]:
    """What lets in those whom ``ingress`` names, on the ports alone.

    Args:
        ingress: As the template has it.
        ports: Of TCP.
        target: An address in the network that is to be reached.
        public: Whether it is reached over the internet.

    Raises:
        LaunchError: The address that this machine is seen with can't be told.
    """
    sources: dict[str, list[dict[str, str]]] = {}
    for entry in ingress:
        kind = source_of(entry)
        text = f"{runner_address(target, public=public)}/32" if kind == "runner" else entry
        match kind:
            case "group":
                sources.setdefault("UserIdGroupPairs", []).append({"GroupId": text})
            case "ipv6":
                sources.setdefault("Ipv6Ranges", []).append({"CidrIpv6": text})
            case _:
                sources.setdefault("IpRanges", []).append({"CidrIp": text})
    if not sources:
        return []
    return [
        {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, **sources}
        for port in sorted(set(ports))
    ]


def runner_address(target: str, *, public: bool) -> str:
    """The address that connections from here are seen with.

    Args:
        target: What is connected to; decides which of this machine's own addresses is used.
        public: Whether it goes over the internet, and through whatever translates addresses.

    Raises:
        LaunchError: It can't be told.
    """
    if not public:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # nothing is sent
            try:
                probe.connect((target, 9))
            except OSError as error:
                raise LaunchError(
                    f"no way from here to {target}: {error}. Say in ingress who may connect, or "
                    'have address = "public"'
                ) from error
            return str(probe.getsockname()[0])
    import requests

    try:
        answer = requests.get(WHO_AM_I, timeout=10)
        answer.raise_for_status()
        # Not what a captive portal says, which answers everything.
        return str(ipaddress.IPv4Address(answer.text.strip()))
    except (requests.RequestException, ValueError) as error:
        said = " ".join(str(error).split())
        host = urlsplit(WHO_AM_I).hostname
        raise LaunchError(
            f"{host} does not say which address this machine has on the internet: {said}. Say in "
            "ingress who may connect"
        ) from error


def delete(client: Any, group: str, *, within: float = LINGER) -> None:
    """Delete a group, as soon as nothing uses it any more.

    Args:
        client: Of EC2.
        group: Its id.
        within: Seconds in which what used it must have gone.

    Raises:
        DestroyError: Something still does; says what.
    """
    deadline = time.monotonic() + within
    while not try_delete(client, group):
        if time.monotonic() >= deadline:
            raise still_used(client, group)
        time.sleep(PAUSE)


def try_delete(client: Any, group: str) -> bool:
    """Delete a group; whether it is gone, and not still used."""
    from botocore.exceptions import ClientError

    try:
        client.delete_security_group(GroupId=group)
    except ClientError as error:
        found = aws.code(error)
        if found not in {"DependencyViolation", *aws.THROTTLED, *GONE}:
            raise
        return found in GONE
    return True


def still_used(client: Any, group: str) -> DestroyError:
    """The error for a group that can't be deleted."""
    found = client.describe_network_interfaces(Filters=[{"Name": "group-id", "Values": [group]}])[
        "NetworkInterfaces"
    ]
    names = ", ".join(str(one["NetworkInterfaceId"]) for one in found)
    users = f"the network interfaces {names}" if names else "something (another group's rules?)"
    return DestroyError(
        f"the security group {group} is still used by {users}. See what refers to it, then: "
        "pytest-ephemeral reap"
    )


def _authorize(client: Any, group: str, permissions: Sequence[Mapping[str, Any]]) -> None:
    from botocore.exceptions import ClientError

    deadline = time.monotonic() + UNSEEN
    while True:
        try:
            client.authorize_security_group_ingress(GroupId=group, IpPermissions=list(permissions))
        except ClientError as error:
            found = aws.code(error)
            if found == "InvalidPermission.Duplicate":
                return
            if found not in GONE or time.monotonic() > deadline:
                raise
            time.sleep(PAUSE)
        else:
            return


def _visible(client: Any, id: str) -> str:
    """The group of an id, which is there, as soon as it can be seen.

    Raises:
        LaunchError: It can't.
    """
    deadline = time.monotonic() + UNSEEN
    while not (found := described(client, "group-name", [name_of(id)])):
        if time.monotonic() >= deadline:
            raise LaunchError(f"the security group {name_of(id)} is there, and can't be seen")
        time.sleep(PAUSE)
    return str(found[0]["GroupId"])
