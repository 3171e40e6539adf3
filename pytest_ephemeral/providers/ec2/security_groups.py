"""Security groups: environments of a run with the same ingress share one, in each VPC.

A group's rules name addresses, ports and the user's groups, never the group itself. So its members
can't reach each other by it: each environment admits only what its ``ingress`` names, as with a
group of its own. Two hundred environments need one group; AWS would create five in a second.

The last environment to leave deletes the group. AWS refuses to delete one that an instance is in.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from pytest_ephemeral import aws, aws_retries, labels, machine
from pytest_ephemeral.errors import DestroyError, LaunchError, UnavailableError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers import waiting
from pytest_ephemeral.providers.ec2.errors import describe_error
from pytest_ephemeral.providers.ec2.tables import source_of
from pytest_ephemeral.providers.ec2.tags import PROCESS, to_tags

#: Seconds to wait until a group can be deleted: network interfaces outlive their instances.
LINGER: Final = 330.0
PAUSE: Final = 2.0
#: Seconds after which a new group is visible at the latest.
UNSEEN: Final = 60.0

#: AWS's service that returns the caller's public address.
WHO_AM_I: Final = "https://checkip.amazonaws.com"

#: The start of a shared group's ``ID`` tag, in place of an environment's id.
PREFIX: Final = "ingress-"

GONE: Final = frozenset(
    {"InvalidGroup.NotFound", "InvalidGroupId.NotFound", "InvalidSecurityGroupID.NotFound"}
)

Permissions = Sequence[Mapping[str, Any]]


class SharedGroups:
    """The security groups that this process's environments in one region share.

    Args:
        client: An EC2 client.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._lock = threading.RLock()
        self._known: dict[str, str] = {}  # by the value of the ID tag: the group's id
        self._joining: dict[str, set[str]] = defaultdict(set)  # environments, by their group
        self._deleting: set[str] = set()
        self._deleted: dict[str, bool] = {}  # by group: True if deleted, False if it was gone

    def join(self, environment: Environment, vpc: str | None, permissions: Permissions) -> str:
        """Find or create the group with exactly these permissions.

        Args:
            environment: The environment that launches into it.
            vpc: The VPC's id; None for the default VPC.
            permissions: Rules in the form of ``AuthorizeSecurityGroupIngress``.

        Returns:
            The group's id.
        """
        id = _id_of(environment.labels[labels.RUN], vpc, permissions)
        with self._lock:
            if id not in self._known:
                tags = to_tags(_tags(environment, id))
                self._known[id] = ensure(self._client, id, tags, vpc, permissions)
            self._joining[self._known[id]].add(environment.id)
            return self._known[id]

    def confirm(self, environment: Environment, group: str) -> None:
        """Note that the environment's instances are in the group, as AWS can show from now on."""
        with self._lock:
            self._joining[group].discard(environment.id)

    def forget(self, environment: Environment, group: str) -> None:
        """Drop a group that EC2 does not find, so that ``join`` looks for it again."""
        with self._lock:
            self._known = {id: known for id, known in self._known.items() if known != group}
            self._joining[group].discard(environment.id)

    def knows(self, group: str) -> bool:
        """Whether this process created, found or deleted the group."""
        with self._lock:
            return group in self._deleted or group in self._known.values()

    def has_deleted(self, group: str | None) -> bool:
        """Whether this process deleted the group; then no instance can be in it."""
        with self._lock:
            return self._deleted.get(group or "", False)

    def leave(self, environment: Environment, group: str, is_used: Callable[[], bool]) -> None:
        """Delete an ended environment's group, unless other environments use it.

        Args:
            environment: The environment, whose instances have ended.
            group: The group's id.
            is_used: Whether instances of other environments are in it.

        Raises:
            DestroyError: Something else uses it, or AWS refuses; the message says which.
        """
        with self._lock:
            self._joining[group].discard(environment.id)
            if group in self._deleting:
                return
            self._deleting.add(group)
        try:
            self.delete(group, is_used)
        finally:
            with self._lock:
                self._deleting.discard(group)

    def delete(self, group: str, is_used: Callable[[], bool] = lambda: False) -> None:
        """Wait until nothing uses a group, and delete it; leave it if environments use it.

        Raises:
            DestroyError: Something else uses it, or AWS refuses; the message says which.
        """

        def try_once() -> bool:
            with self._lock:  # nobody may join or leave between the check and the deletion
                if group in self._deleted or self._joining[group] or is_used():
                    self._deleting.discard(group)
                    return True
                if not (outcome := _try_delete(self._client, group)):
                    return False
                self._deleted[group] = outcome == "deleted"
                self._known = {id: known for id, known in self._known.items() if known != group}
                return True

        if not waiting.wait_until(try_once, within=LINGER, every=PAUSE):
            raise _still_used(self._client, group)


def name_of(id: str) -> str:
    """The name of the security group of an id."""
    return f"pytest-ephemeral-{id}"


def is_shared(group: Mapping[str, Any]) -> bool:
    """Whether a group is shared by a run's environments."""
    return str(group["GroupName"]).startswith(name_of(PREFIX))


def find_of_run(client: Any, run: str) -> list[str]:
    """The ids of the groups that a run's environments share."""
    found = describe(client, f"tag:{labels.RUN}", [run])
    return [str(one["GroupId"]) for one in found if is_shared(one)]


def describe(client: Any, name: str, values: Collection[str]) -> list[Mapping[str, Any]]:
    """The groups for which a filter, such as ``tag:name``, has one of some values."""
    pages = client.get_paginator("describe_security_groups").paginate(
        Filters=[{"Name": name, "Values": list(values)}]
    )
    return [group for page in pages for group in page["SecurityGroups"]]


def ensure(
    client: Any,
    id: str,
    tags: Sequence[Mapping[str, str]],
    vpc: str | None,
    permissions: Permissions,
) -> str:
    """Create the group of an id, with exactly these permissions; or find it.

    Args:
        client: An EC2 client.
        id: The id of a bake or of a shared group.
        tags: The group's tags.
        vpc: The VPC's id; None for the default VPC.
        permissions: Rules in the form of ``AuthorizeSecurityGroupIngress``.

    Returns:
        The group's id.

    Raises:
        LaunchError: AWS reports that the group exists, but does not list it.
    """
    from botocore.exceptions import ClientError

    try:
        created = client.create_security_group(
            GroupName=name_of(id),
            Description=f"pytest-ephemeral {id}",
            TagSpecifications=[{"ResourceType": "security-group", "Tags": list(tags)}],
            **({} if vpc is None else {"VpcId": vpc}),
        )
        group = str(created["GroupId"])
    except ClientError as error:
        if aws.code(error) != "InvalidGroup.Duplicate":
            raise
        # An earlier request created it, and its answer was lost.
        group = _find(client, id)
    if permissions:
        _authorize(client, group, permissions)
    return group


def permissions_for(
    ingress: Iterable[str], ports: Iterable[int], target: str, *, public: bool
) -> list[dict[str, Any]]:
    """The rules that admit the sources in ``ingress`` to some ports, and nothing else.

    Args:
        ingress: The template's ``ingress``.
        ports: TCP ports.
        target: An address in the subnet that is connected to.
        public: Whether connections go over the internet.

    Raises:
        LaunchError: This machine's address can't be found out.
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
    """The source address of connections from this machine, as the target sees it.

    Args:
        target: The address that is connected to; the route to it decides the source address.
        public: Whether connections go over the internet, and so may be translated (NAT).

    Raises:
        LaunchError: The address can't be found out.
    """
    if not public:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # UDP: sends nothing
            try:
                probe.connect((target, 9))
            except OSError as error:
                raise LaunchError(
                    f"no route from here to {target}: {error}. Name in ingress who may connect, "
                    'or set address = "public"'
                ) from error
            return str(probe.getsockname()[0])
    import requests

    try:
        answer = requests.get(WHO_AM_I, timeout=10)
        answer.raise_for_status()
        # A captive portal answers with a page of its own, which is not an address.
        return str(ipaddress.IPv4Address(answer.text.strip()))
    except (requests.RequestException, ValueError) as error:
        reason = " ".join(str(error).split())
        host = urlsplit(WHO_AM_I).hostname
        raise LaunchError(
            f"{host} does not report this machine's address on the internet: {reason}. Name "
            "in ingress who may connect"
        ) from error


def _try_delete(client: Any, group: str) -> Literal["deleted", "not there", ""]:
    """Try to delete a group; empty if something uses it, or AWS throttles."""
    from botocore.exceptions import ClientError

    try:
        with aws.translate_errors():
            client.delete_security_group(GroupId=group)
    except (ClientError, UnavailableError) as error:
        found = aws.code(error)
        if found in {"DependencyViolation", *aws_retries.THROTTLED, *GONE}:
            return "not there" if found in GONE else ""
        raise DestroyError(
            f"the security group {group} remains: {describe_error(error)}. Fix that, then: "
            "pytest-ephemeral reap"
        ) from error
    return "deleted"


def _still_used(client: Any, group: str) -> DestroyError:
    """The error for a group that can't be deleted, with the network interfaces that use it."""
    found = client.describe_network_interfaces(Filters=[{"Name": "group-id", "Values": [group]}])[
        "NetworkInterfaces"
    ]
    names = ", ".join(str(one["NetworkInterfaceId"]) for one in found)
    users = f"the network interfaces {names}" if names else "something (another group's rules?)"
    return DestroyError(
        f"the security group {group} is still used by {users}. See what refers to it, then: "
        "pytest-ephemeral reap"
    )


def _authorize(client: Any, group: str, permissions: Permissions) -> None:
    def authorize() -> None:
        client.authorize_security_group_ingress(GroupId=group, IpPermissions=list(permissions))

    try:
        waiting.retry(authorize, when=_is_gone, within=UNSEEN, every=PAUSE)
    except Exception as error:
        if aws.code(error) != "InvalidPermission.Duplicate":
            raise


def _is_gone(error: Exception) -> bool:
    return aws.code(error) in GONE


def _find(client: Any, id: str) -> str:
    """Wait until the group of an id, which exists, is visible; return the group's id.

    Raises:
        LaunchError: It does not become visible.
    """
    look = partial(describe, client, "group-name", [name_of(id)])
    if not (found := waiting.wait_until(look, within=UNSEEN, every=PAUSE)):
        raise LaunchError(f"the security group {name_of(id)} exists, but AWS does not list it")
    return str(found[0]["GroupId"])


def _id_of(run: str, vpc: str | None, permissions: Permissions) -> str:
    text = json.dumps([run, vpc, list(permissions)], sort_keys=True)
    return PREFIX + hashlib.sha256(text.encode()).hexdigest()[:12]


def _tags(environment: Environment, id: str) -> dict[str, str]:
    """The tags of a shared group: it belongs to the run, not to one environment."""
    process = machine.process_of(environment.owner)
    return {**environment.labels, labels.ID: id, PROCESS: process, "Name": id}
