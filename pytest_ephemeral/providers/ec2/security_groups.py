"""Security groups: one for all environments of a run that let in the same, in one network.

A group's rules name addresses, ports and groups of the user's, never the group itself: what is in a
group is not opened to it. So each environment lets in what its ``ingress`` says, as if the group
were its own, and two hundred at once don't make two hundred groups, which AWS would give at five a
second.

Who leaves last deletes the group. Nobody has to be right about that: AWS refuses to delete a group
that an instance is in, so none is taken from an environment that goes on, such as one that was kept
or is production.
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

#: Network interfaces stay after their instances: seconds in which their group is deleted.
LINGER: Final = 330.0
PAUSE: Final = 2.0
#: Seconds in which a group that was just created becomes visible.
UNSEEN: Final = 60.0

#: AWS's own service that tells a caller's public address.
WHO_AM_I: Final = "https://checkip.amazonaws.com"

#: How the ``ID`` tag of a shared group begins: it is no environment's.
PREFIX: Final = "ingress-"

GONE: Final = frozenset(
    {"InvalidGroup.NotFound", "InvalidGroupId.NotFound", "InvalidSecurityGroupID.NotFound"}
)

Permissions = Sequence[Mapping[str, Any]]


class SharedGroups:
    """The groups that this process's environments of one region share.

    Args:
        client: Of EC2.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._lock = threading.RLock()
        self._known: dict[str, str] = {}  # the value of the ID tag, and the group's id
        self._joining: dict[str, set[str]] = defaultdict(set)  # a group, and who launches into it
        self._deleting: set[str] = set()
        self._deleted: dict[str, bool] = {}  # a group, and whether AWS had it, and let it go

    def join(self, environment: Environment, vpc: str | None, permissions: Permissions) -> str:
        """Find or create the group that has some permissions, and no others.

        Args:
            environment: Whose instances are to be in it.
            vpc: Where; None for the default VPC.
            permissions: As ``AuthorizeSecurityGroupIngress`` takes them.

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
        """Note that its instances are in the group: from now on, AWS shows that."""
        with self._lock:
            self._joining[group].discard(environment.id)

    def forget(self, environment: Environment, group: str) -> None:
        """Look for a group anew: it is not there, or not visible yet."""
        with self._lock:
            self._known = {id: known for id, known in self._known.items() if known != group}
            self._joining[group].discard(environment.id)

    def knows(self, group: str) -> bool:
        """Whether this process created, found or deleted the group itself."""
        with self._lock:
            return group in self._deleted or group in self._known.values()

    def has_deleted(self, group: str | None) -> bool:
        """Whether AWS let this process delete it: then no instance was in it, nor will be."""
        with self._lock:
            return self._deleted.get(group or "", False)

    def leave(self, environment: Environment, group: str, is_used: Callable[[], bool]) -> None:
        """Delete a group, unless others use it.

        Args:
            environment: Which has ended.
            group: What its instances were in.
            is_used: Whether instances of other environments are in it.

        Raises:
            DestroyError: Something else uses it; says what.
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
        """Delete a group, as soon as nothing uses it any more, unless others do.

        Raises:
            DestroyError: Something still uses it, or AWS refuses; says what.
        """

        def try_once() -> bool:
            with self._lock:  # who joins or leaves meanwhile does so before it, or after it
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
    """The name of an id's group: whoever knows the id finds it."""
    return f"pytest-ephemeral-{id}"


def is_shared(group: Mapping[str, Any]) -> bool:
    """Whether a group is one that a run's environments share."""
    return str(group["GroupName"]).startswith(name_of(PREFIX))


def find_of_run(client: Any, run: str) -> list[str]:
    """The groups that a run's environments share."""
    found = describe(client, f"tag:{labels.RUN}", [run])
    return [str(one["GroupId"]) for one in found if is_shared(one)]


def describe(client: Any, name: str, values: Collection[str]) -> list[Mapping[str, Any]]:
    """The groups that pass a filter, such as ``tag:name``, with one of some values."""
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
    """Create a group that has some permissions and no others; created before, it is found.

    Args:
        client: Of EC2.
        id: Whose.
        tags: Its tags.
        vpc: Where; None for the default VPC.
        permissions: As ``AuthorizeSecurityGroupIngress`` takes them.

    Returns:
        Its id.
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
        # Asked for before, and the answer was lost: names are unique so that this shows.
        group = _find(client, id)
    if permissions:
        _authorize(client, group, permissions)
    return group


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
    """The address that connections from here come from.

    Args:
        target: What is connected to; decides which of this machine's own addresses is used.
        public: Whether it goes over the internet, and through whatever translates addresses.

    Raises:
        LaunchError: It can't be found out.
    """
    if not public:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # nothing is sent
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
        # A captive portal answers everything, but not with an address.
        return str(ipaddress.IPv4Address(answer.text.strip()))
    except (requests.RequestException, ValueError) as error:
        reason = " ".join(str(error).split())
        host = urlsplit(WHO_AM_I).hostname
        raise LaunchError(
            f"{host} does not report this machine's address on the internet: {reason}. Name "
            "in ingress who may connect"
        ) from error


def _try_delete(client: Any, group: str) -> Literal["deleted", "not there", ""]:
    """Delete a group; empty while it is still used."""
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
    """The group of an id, which exists, as soon as it is visible.

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
    """A group may outlive the environment that it was created for, but not their run."""
    process = machine.process_of(environment.owner)
    return {**environment.labels, labels.ID: id, PROCESS: process, "Name": id}
