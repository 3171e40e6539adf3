"""The configuration keys of the ec2 provider's recipes and templates."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

import msgspec

from pytest_ephemeral.durations import Duration
from pytest_ephemeral.tables import Name, Recipe, Table, Template

AMI: Final = r"^ami-[0-9a-f]+$"
RUNNER: Final = "runner"

Money = Annotated[str, msgspec.Meta(pattern=r"^\$[0-9]+(\.[0-9]+)?$")]
Count = Annotated[int, msgspec.Meta(ge=1, le=100)]
Gibibytes = Annotated[int, msgspec.Meta(ge=1, le=65536)]


class BaseQuery(Table, frozen=True, kw_only=True):
    """A query for the newest AMI of an owner with a matching name.

    Attributes:
        owner: An account's number, or ``amazon``, ``self``, ``aws-marketplace``.
        name: The name; may have the wildcards ``*`` and ``?``.
        architecture: The processor architecture.
    """

    owner: str
    name: str
    architecture: Literal["x86_64", "arm64"] = "x86_64"


class Ec2Recipe(Recipe, frozen=True, kw_only=True):
    """An AMI: baked from a ``base``, or a ``reference`` to one that was made elsewhere.

    Attributes:
        base: The AMI to install into: its id ``ami-…``, ``ssm:PARAMETER`` for an SSM parameter
            with the id, or a query for the newest AMI of an owner, such as
            ``{ owner = "136693071363", name = "debian-12-amd64-*" }``.
        region: The region to bake and launch in; by default boto3's own.
        instance_type: The instance type of the bake.
        subnet: The subnet of the bake; by default one of the default VPC.
        instance_profile: The instance profile of the bake's instance.
        bucket: An S3 bucket for artifacts and logs that are too large for user data (16 KB).
            Presigned URLs are used, so the bake needs no role for it.
        copy_to: Other regions to copy the AMI to, once it is verified.
        timeout: How long the installation may take.
    """

    provider: str = "ec2"
    base: str | BaseQuery | None = None
    region: str | None = None
    instance_type: str = "t3.small"
    subnet: str | None = None
    instance_profile: str | None = None
    bucket: str | None = None
    copy_to: list[str] = msgspec.field(default_factory=list)
    timeout: Duration = Duration(3600)

    def check(self) -> None:
        """Check that there is one of ``base`` and ``reference``, in a valid form."""
        if (self.base is None) == (self.reference is None):
            raise ValueError("give either base (the AMI to install into) or reference (an AMI)")
        if self.base is not None and not self.install:
            raise ValueError("it has a base: give install, too (the commands to run in it)")
        if self.reference is not None and not re.match(AMI, self.reference):
            raise ValueError(f'reference: expected "ami-…", got {self.reference!r}')
        if isinstance(self.base, str) and not re.match(rf"{AMI}|^ssm:/?\S+$", self.base):
            raise ValueError(
                f'base: expected "ami-…", "ssm:/…" or {{ owner = …, name = … }}, got {self.base!r}'
            )


class Ec2Template(Template, frozen=True, kw_only=True):
    """One or several EC2 instances.

    Attributes:
        command: A shell command to start at boot, or several by process name. Leave it out if the
            image starts its application by itself. Commands have ``$PREFIX``, ``$HOST`` (the
            instance's private address), ``$PORT``, and ``$STATE``, their working folder. When one
            exits, the environment ends.
        instance_type: The instance type, or several to try in turn on lack of capacity or quota.
        region: The region to launch in; by default the region of its image.
        subnet: The subnet, or several to try in turn; by default those of the default VPC.
        ingress: Who may connect to its ports: ``runner`` (this machine's address), CIDRs,
            security groups.
        security_groups: Your own security groups to use, instead of one with ``ingress``.
        address: Whether its URL has the private or the public address.
        count: How many instances to launch; the second one's endpoint is called ``http-2``.
        spot: Whether to launch spot instances, which AWS may interrupt.
        instance_profile: The instance profile of the instances. Commands (``run``, ``seed``,
            ``ready.command``) need one with the permissions of the SSM agent.
        key_name: The key pair for SSH.
        user_data: A shell script to run at boot, before the command.
        volume_size: The size of the root volume in gibibytes, if larger than the image's.
        volumes: Further volumes, by device name (``"/dev/sdf"``), in gibibytes; they are deleted
            with the instance.
        standby: How many instances to keep when their environments end: each is renewed, stopped,
            and started again for the next environment. A stopped one costs its root volume.
        standby_ttl: How long to keep each instance on standby.
        max_cost: The highest cost within its ``ttl``, such as ``"$2"``; if it could cost more,
            nothing is launched.
        prices: A file with hourly prices in US dollars, instead of the built-in table.
    """

    unsupported: ClassVar[Mapping[str, str]] = {
        "hibernate": (
            "instances are not hibernated: a hibernated one would keep the memory of its last "
            "environment, and has nothing to resume once its root volume is replaced. Use "
            "standby = 2: instances are renewed, stopped, and started for the next environments"
        )
    }

    provider: str = "ec2"
    command: str | dict[Name, str] | None = None
    instance_type: str | list[str] = "t3.small"
    region: str | None = None
    subnet: str | list[str] = msgspec.field(default_factory=list)
    ingress: list[str] = msgspec.field(default_factory=lambda: [RUNNER])
    security_groups: list[str] = msgspec.field(default_factory=list)
    address: Literal["private", "public"] = "private"
    count: Count = 1
    spot: bool = False
    instance_profile: str | None = None
    key_name: str | None = None
    user_data: str | None = None
    volume_size: Gibibytes | None = None
    volumes: dict[str, Gibibytes] = msgspec.field(default_factory=dict)
    standby: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    standby_ttl: Duration = Duration(8 * 3600)
    max_cost: Money | None = None
    prices: str | None = None

    def check(self) -> None:
        """Check that it has an image and an instance type, and that ``ingress`` is valid."""
        if self.image is None:
            raise ValueError("it needs an image")
        if not self.instance_types():
            raise ValueError("instance-type is empty: name at least one")
        if self.command is not None and not all(map(str.strip, self.processes().values())):
            raise ValueError("its command is empty: name the program to start")
        for one in self.ingress:
            source_of(one)
        if self.standby:
            self._check_standby()

    def _check_standby(self) -> None:
        """Check that its instance can be stopped and renewed."""
        if self.count > 1:
            raise ValueError("standby is for environments of one instance: leave out count")
        if self.spot:
            raise ValueError("standby: spot instances can't be stopped: leave out spot")
        if self.volumes:
            raise ValueError("standby: only the root volume is renewed: leave out volumes")

    def processes(self) -> dict[str, str]:
        """Its commands by process name, in the order in which they are started."""
        if isinstance(self.command, dict):
            return dict(self.command)
        return {} if self.command is None else {"app": self.command}

    def instance_types(self) -> list[str]:
        """The instance types to try, in turn."""
        return [self.instance_type] if isinstance(self.instance_type, str) else self.instance_type

    def subnets(self) -> list[str]:
        """The subnets to try, in turn; empty for the default VPC."""
        return [self.subnet] if isinstance(self.subnet, str) else self.subnet


def source_of(text: str) -> Literal["runner", "group", "ipv4", "ipv6"]:
    """The kind of an entry of ``ingress``.

    Raises:
        ValueError: The entry is not valid.
    """
    if text == RUNNER:
        return "runner"
    if re.match(r"^sg-[0-9a-f]+$", text):
        return "group"
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        raise ValueError(
            f'ingress: expected "runner", a CIDR such as "10.0.0.0/8", or "sg-…", got {text!r}'
        ) from None
    return "ipv4" if network.version == 4 else "ipv6"
