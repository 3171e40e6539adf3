"""The keys that recipes and templates of the ec2 provider have."""

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
    """The newest image of an owner whose name matches.

    Attributes:
        owner: An account's number, or ``amazon``, ``self``, ``aws-marketplace``.
        name: The name, with ``*`` and ``?``.
        architecture: The processors it is for.
    """

    owner: str
    name: str
    architecture: Literal["x86_64", "arm64"] = "x86_64"


class Ec2Recipe(Recipe, frozen=True, kw_only=True):
    """An AMI: ``base`` with something installed, or a ``reference`` baked elsewhere.

    Attributes:
        base: What is installed into: ``ami-…``, ``ssm:`` and a parameter that holds one, or the
            newest of an owner, ``{ owner = "136693071363", name = "debian-12-amd64-*" }``.
        region: Where it is baked, and runs; by default boto3's.
        instance_type: What bakes it.
        subnet: Where it is baked; by default in the default VPC.
        instance_profile: The role's instance profile that the bake has.
        bucket: An S3 bucket that takes artifacts and logs to the bake and back, where they don't
            fit into user data (16 KB). Presigned URLs are used, so the bake needs no role for it.
        copy_to: Other regions it is copied to, once it is verified.
        timeout: How long installing may take.
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
        """It is made in one way."""
        if (self.base is None) == (self.reference is None):
            raise ValueError("give one of base (what is installed into) and reference (an AMI)")
        if self.base is not None and not self.install:
            raise ValueError("it has a base: give install too (what puts the artifact into it)")
        if self.reference is not None and not re.match(AMI, self.reference):
            raise ValueError(f'reference: expected "ami-…", got {self.reference!r}')
        if isinstance(self.base, str) and not re.match(rf"{AMI}|^ssm:/?\S+$", self.base):
            raise ValueError(
                f'base: expected "ami-…", "ssm:/…" or {{ owner = …, name = … }}, got {self.base!r}'
            )


class Ec2Template(Template, frozen=True, kw_only=True):
    """An instance, or several.

    Attributes:
        command: A shell command that serves, or several by process name, started at boot; left
            out where the image starts its application by itself. They see ``$PREFIX``, ``$HOST``
            (its private address), ``$PORT``, and ``$STATE``, where they start. When one exits, so
            does the environment.
        instance_type: One, or several that are tried in turn on lack of capacity or quota.
        region: Where; by default where its image was baked.
        subnet: One, or several that are tried in turn; by default the default VPC's.
        ingress: Who may connect to its ports: ``runner`` (the address this runs from), CIDRs,
            security groups.
        security_groups: Groups of yours that it joins instead of getting one of its own.
        address: Which one its URL has.
        count: How many instances; from the second on, endpoints are called ``http-2``.
        spot: Whether it may run on spare capacity, and be taken away.
        instance_profile: The role's instance profile it has. With the SSM agent and its
            permissions, commands (``run``, ``seed``, ``ready.command``) work.
        key_name: The key pair for SSH.
        user_data: A shell script of yours, run at boot before the command.
        volume_size: Gibibytes of the root volume, if more than the image's.
        volumes: More, by device name (``"/dev/sdf"``), in gibibytes; they die with it.
        standby: How many instances are kept when their environments end: renewed, stopped, and
            started again for the next. Each costs its root volume while it is stopped.
        standby_ttl: How long each of those is kept.
        max_cost: Refuse to launch what could cost more within its ``ttl``, such as ``"$2"``.
        prices: A file of yours with dollars an hour, instead of the table that comes with this.
    """

    left_out: ClassVar[Mapping[str, str]] = {
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
        """There is something to run, and who may connect can be told."""
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
        """Its instance can be stopped, and all that is on it is renewed."""
        if self.count > 1:
            raise ValueError("standby is for environments of one instance: leave out count")
        if self.spot:
            raise ValueError("standby: an instance on spare capacity (spot) can't be stopped")
        if self.volumes:
            raise ValueError("standby: only the root volume is renewed: leave out volumes")

    def processes(self) -> dict[str, str]:
        """Its commands by process name, in starting order."""
        if isinstance(self.command, dict):
            return dict(self.command)
        return {} if self.command is None else {"app": self.command}

    def instance_types(self) -> list[str]:
        """Those that are tried, in turn."""
        return [self.instance_type] if isinstance(self.instance_type, str) else self.instance_type

    def subnets(self) -> list[str]:
        """Those that are tried, in turn; empty for the default VPC's."""
        return [self.subnet] if isinstance(self.subnet, str) else self.subnet


def source_of(text: str) -> Literal["runner", "group", "ipv4", "ipv6"]:
    """What an entry of ``ingress`` is.

    Raises:
        ValueError: Nothing that may be one.
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
