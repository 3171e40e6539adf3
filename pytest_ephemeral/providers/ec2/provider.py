"""Environments on EC2: instances in a security group of their own, seen by one shared look."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, ClassVar, Final

import msgspec

from pytest_ephemeral import aws
from pytest_ephemeral.errors import (
    DestroyError,
    EnvironmentGoneError,
    EphemeralError,
    LaunchError,
)
from pytest_ephemeral.labels import EXPIRES, NEVER
from pytest_ephemeral.models import Endpoint, Environment, Image, Recipe, Template, endpoints_at
from pytest_ephemeral.providers import Check, Order, Owned, Status
from pytest_ephemeral.providers.ec2 import (
    amis,
    belongings,
    commands,
    console,
    destroying,
    groups,
    guest,
    launching,
    prices,
)
from pytest_ephemeral.providers.ec2.baking import Ec2Baker
from pytest_ephemeral.providers.ec2.destroying import GROUP, INSTANCES
from pytest_ephemeral.providers.ec2.doctor import checks
from pytest_ephemeral.providers.ec2.fleet import Fleet, Instance, fleet, state
from pytest_ephemeral.providers.ec2.tables import Ec2Recipe, Ec2Template
from pytest_ephemeral.providers.ec2.tagging import VERIFIED, as_tags, expiry, tags_of

#: In a handle.
REGION: Final = "region"
PARTS: Final = "parts"
ADDRESS: Final = "address"

#: Seconds in which a public address is given.
ADDRESSING: Final = 120.0

#: Why an instance ended, when someone has ended it through the API.
_ON_PURPOSE: Final = frozenset({"Client.UserInitiatedShutdown"})
_ENDED: Final = frozenset({"shutting-down", "terminated", "stopping", "stopped"})


class Ec2Provider(Ec2Baker):
    """See ``Provider`` for what is promised."""

    name: ClassVar[str] = "ec2"
    template_type: ClassVar[type[Template]] = Ec2Template
    recipe_type: ClassVar[type[Recipe] | None] = Ec2Recipe
    guards_itself: ClassVar[bool] = False

    def doctor(self) -> Sequence[Check]:
        """Whether AWS can be asked."""
        return checks()

    def launch(self, order: Order) -> Environment:
        """A security group, then instances of whichever type there is capacity for."""
        with _explained(order.environment, "could not be launched", LaunchError):
            return _launch(order)

    def status(self, environment: Environment) -> Status:
        """What the last look at all instances saw; costs no call of its own."""
        with _explained(environment, "can't be looked at", EphemeralError):
            found = _fleet(environment).instances(environment)
        return _status(environment, found)

    def logs(
        self,
        environment: Environment,
        *,
        since: str | None = None,
        until: str | None = None,
        tail: int | None = None,
    ) -> str:
        """What its processes have put on the consoles, as new as EC2 has it."""
        return _log(environment).text(since, until, tail)

    def log_mark(self, environment: Environment) -> str:
        """The number of each process's last line."""
        return _log(environment).mark()

    def log_files(self, environment: Environment) -> Mapping[str, str]:
        """What is on the consoles, by process."""
        return _log(environment).files()

    def run(
        self, environment: Environment, argv: Sequence[str], *, timeout: float | None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on its first instance, by Systems Manager."""
        first = _living(environment)[0]["InstanceId"]
        with _explained(environment, "could not run a command", EphemeralError):
            return commands.run(
                environment.handle.get(REGION), environment.id, first, argv, timeout=timeout
            )

    def hint(self, environment: Environment) -> str:
        """Where it listens, where that can be seen; else what lets nobody in."""
        try:
            first = _living(environment)[0]
            argv = ["cat", "/proc/net/tcp"]
            done = self.run(environment, argv, timeout=5)
        except (EphemeralError, subprocess.TimeoutExpired):
            return (
                "see that its application listens on $HOST, and that ingress lets this machine in"
            )
        ports = {endpoint.port for endpoint in environment.endpoints.values()}
        return _listens_elsewhere(done.stdout, str(first["PrivateIpAddress"]), ports)

    def extend(self, environment: Environment, expires_at: datetime | None) -> None:
        """Move the tag that the guest's own clock reads; never also means protected."""
        living = _living(environment)
        with _explained(environment, "could not be extended", EphemeralError):
            _extend(_fleet(environment).client, environment, living, expires_at)

    def keep(self, environment: Environment) -> None:
        """Only the watchdog ends it with its owner, and that reads the ledger."""
        _living(environment)

    def destroy(self, environment: Environment) -> None:
        """Instances, then its group."""
        with _explained(environment, "could not be destroyed", DestroyError):
            destroying.destroy(_fleet(environment), environment)

    def owned(self) -> Iterator[Owned]:
        """All in boto3's region that is tagged as ours, bakes and what they left included."""
        with aws.explained():
            yield from belongings.owned(aws.client("ec2"))

    def sweep(self, owned: Owned) -> None:
        """Remove all that carries its id; what is protected from termination stays."""
        from botocore.exceptions import ClientError

        try:
            with aws.explained():
                belongings.remove(aws.client("ec2"), owned.id)
        except ClientError as error:
            raise DestroyError(f"{owned.id} remains: {launching.told(error)}") from error


def _launch(order: Order) -> Environment:
    template, image = order.template, order.image
    if not isinstance(template, Ec2Template) or image is None:
        raise LaunchError(f"{order.environment.id}: its template is none for EC2")
    squad = fleet(template.region or image.handle.get(REGION))
    region = str(squad.client.meta.region_name)
    table = prices.Prices(None if template.prices is None else order.root / template.prices)
    prices.check(template, table, region, template.ttl / 3600)
    draft = _Draft(order)
    draft.note({REGION: region, PARTS: " ".join(template.processes()), ADDRESS: template.address})
    joined = _join(squad, order.environment, template)
    draft.note({GROUP: "" if template.security_groups else joined[0]})
    wanted = _wanted(order, template, image, _image_in(squad, image, region), joined)
    launched = launching.run(
        squad.client, wanted, lambda request: draft.note({launching.REQUEST: request})
    )
    draft.forget(launching.REQUEST)
    draft.note({INSTANCES: ",".join(one["InstanceId"] for one in launched)})
    hourly = table.hourly(launched[0]["InstanceType"], region)
    if hourly is not None:
        draft.note({prices.HOURLY: f"{hourly * template.count:g}"}, journal=False)
    squad.add(launched)
    if template.address == "public":
        launched = _addressed(squad, draft.environment)
    return _with_endpoints(draft.environment, template, launched)


class _Draft:
    """An environment whose handle grows while it is launched, each time into the ledger first."""

    def __init__(self, order: Order) -> None:
        self.environment = order.environment
        self._journal = order.journal

    def note(self, facts: Mapping[str, str], *, journal: bool = True) -> None:
        handle = {**self.environment.handle, **facts}
        self.environment = msgspec.structs.replace(self.environment, handle=handle)
        if journal:
            self._journal(self.environment)

    def forget(self, name: str) -> None:
        handle = {key: value for key, value in self.environment.handle.items() if key != name}
        self.environment = msgspec.structs.replace(self.environment, handle=handle)


def _join(squad: Fleet, environment: Environment, template: Ec2Template) -> list[str]:
    """The groups it is in: one of its own, unless it joins the user's."""
    if template.security_groups:
        return list(template.security_groups)
    # Where nothing says which network, any address outside decides by which way one goes there.
    vpc, target = None, "10.0.0.1"
    if template.subnets():
        vpc, target = belongings.vpc_of(squad.client, template.subnets()[0])
    permissions = groups.permissions_for(
        template.ingress,
        template.endpoints().values(),
        target,
        public=template.address == "public",
    )
    marks = as_tags(environment.labels)
    return [groups.ensure(squad.client, environment.id, marks, vpc, permissions)]


def _wanted(
    order: Order, template: Ec2Template, image: Image, ami: str, joined: list[str]
) -> launching.Wanted:
    environment = order.environment
    script = guest.boot_script(
        environment, template, order.variables, order.secrets, image.handle.get("prefix", "")
    )
    if len(script.encode()) > guest.USER_DATA_LIMIT:
        raise LaunchError(
            f"templates.{template.name}: its variables, command and user-data make "
            f"{len(script.encode())} bytes of user data, and EC2 takes {guest.USER_DATA_LIMIT}: "
            "put what is large into the image"
        )
    return launching.Wanted(
        id=environment.id,
        image=ami,
        types=template.instance_types(),
        subnets=template.subnets(),
        groups=joined,
        marks={**environment.labels, "Name": environment.id},
        user_data=script,
        secret=bool(order.secrets),
        public=template.address == "public",
        count=template.count,
        more=_options(template, image),
    )


def _options(template: Ec2Template, image: Image) -> dict[str, Any]:
    """What a template may add to a request."""
    more: dict[str, Any] = {}
    if template.instance_profile is not None:
        more["IamInstanceProfile"] = {"Name": template.instance_profile}
    if template.key_name is not None:
        more["KeyName"] = template.key_name
    if template.spot:
        more["InstanceMarketOptions"] = {
            "MarketType": "spot",
            "SpotOptions": {
                "SpotInstanceType": "one-time",
                "InstanceInterruptionBehavior": "terminate",
            },
        }
    sizes = dict(template.volumes)
    if template.volume_size is not None:
        sizes[image.handle.get("root-device") or "/dev/xvda"] = template.volume_size
    if sizes:
        more["BlockDeviceMappings"] = [
            {"DeviceName": name, "Ebs": {"VolumeSize": size, "DeleteOnTermination": True}}
            for name, size in sizes.items()
        ]
    return more


def _image_in(squad: Fleet, image: Image, region: str) -> str:
    """The AMI of an image in a region: itself, or the copy that was made of it."""
    if image.handle.get(REGION) in {None, region}:
        return image.reference
    found = amis.of_key(squad.client, image.key, VERIFIED)
    if not found:
        raise LaunchError(
            f"the image {image.name!r} is in {image.handle[REGION]}, and was not copied to "
            f"{region}: name that in copy-to of images.{image.name}, and bake it again"
        )
    return str(found[0]["ImageId"])


def _addressed(squad: Fleet, environment: Environment) -> list[Instance]:
    """Its instances, once they have public addresses."""

    def content(seen: list[Instance]) -> bool:
        return any(state(one) in _ENDED for one in seen) or (
            bool(seen) and all(one.get("PublicIpAddress") for one in seen)
        )

    squad.wait(environment, content, ADDRESSING)
    found = squad.instances(environment)
    if not found or not all(one.get("PublicIpAddress") for one in found):
        status = _status(environment, found)
        raise LaunchError(
            f"{environment.id} has no public address: {status.detail or 'none was given'}. Its "
            'subnet needs a way to the internet; else: address = "private"'
        )
    return found


def _with_endpoints(
    environment: Environment, template: Ec2Template, launched: Sequence[Instance]
) -> Environment:
    key = "PublicIpAddress" if template.address == "public" else "PrivateIpAddress"
    endpoints: dict[str, Endpoint] = {}
    for place, instance in enumerate(launched):
        found = endpoints_at(str(instance[key]), template.endpoints())
        endpoints |= {f"{name}-{place + 1}" if place else name: at for name, at in found.items()}
    url = next((endpoint.url for endpoint in endpoints.values()), "")
    return msgspec.structs.replace(environment, endpoints=endpoints, url=url)


def _status(environment: Environment, found: Sequence[Instance]) -> Status:
    if not found:
        return Status("gone", "no instance of it is there")
    ended = [one for one in found if state(one) in _ENDED]
    if not ended:
        return Status("running", ", ".join(f"{one['InstanceId']} {state(one)}" for one in found))
    detail = "; ".join(_obituary(environment, one) for one in ended)
    if len(ended) == len(found) and all(_reason(one)[0] in _ON_PURPOSE for one in ended):
        return Status("gone", detail)
    expires = tags_of(found[0]).get(EXPIRES, NEVER)
    expired = expires != NEVER and expires <= expiry(datetime.now().astimezone())
    return Status("gone" if expired else "exited", detail)


#: What was found on the consoles of instances that have ended; they say no more.
_obituaries: dict[str, str] = {}


def _obituary(environment: Environment, instance: Instance) -> str:
    """Why an instance has ended: what its boot script said last, and EC2's own reason."""
    id = str(instance["InstanceId"])
    code, message = _reason(instance)
    said = ""
    if code not in _ON_PURPOSE:
        if id not in _obituaries:
            with contextlib.suppress(EphemeralError):
                text = console.output(_fleet(environment).client, id)
                _obituaries[id] = guest.last_words(text)
        said = _obituaries.get(id, "")
    return ", ".join(filter(None, [said, f"{id} is {state(instance)}", message or code]))


def _reason(instance: Instance) -> tuple[str, str]:
    found = instance.get("StateReason") or {}
    return str(found.get("Code", "")), str(found.get("Message", ""))


def _extend(
    client: Any, environment: Environment, living: Sequence[Instance], expires_at: datetime | None
) -> None:
    """Tags first for a longer life; for none at all, whatever else could end it is disarmed too."""
    resources = [name for one in living for name in _resources(one)]
    if group := environment.handle.get(GROUP):
        resources.append(group)
    was_armed = tags_of(living[0]).get(EXPIRES) != NEVER
    client.create_tags(Resources=resources, Tags=as_tags({EXPIRES: expiry(expires_at)}))
    if was_armed and expires_at is not None:
        return
    behaviour = "stop" if expires_at is None else "terminate"
    for instance in living:
        id = instance["InstanceId"]
        client.modify_instance_attribute(
            InstanceId=id, InstanceInitiatedShutdownBehavior={"Value": behaviour}
        )
        client.modify_instance_attribute(
            InstanceId=id, DisableApiTermination={"Value": expires_at is None}
        )


def _resources(instance: Instance) -> Iterator[str]:
    """An instance, and what was made with it and dies with it."""
    yield str(instance["InstanceId"])
    for device in instance.get("BlockDeviceMappings", ()):
        yield str(device["Ebs"]["VolumeId"])
    for interface in instance.get("NetworkInterfaces", ()):
        yield str(interface["NetworkInterfaceId"])


def _living(environment: Environment) -> list[Instance]:
    """Its instances that have not ended.

    Raises:
        EnvironmentGoneError: There are none.
    """
    with _explained(environment, "can't be looked at", EphemeralError):
        found = _fleet(environment).instances(environment)
    living = [one for one in found if state(one) not in _ENDED]
    if not living:
        raise EnvironmentGoneError(f"no instance of {environment.id} runs any more")
    return living


def _log(environment: Environment) -> console.Log:
    with _explained(environment, "can't be looked at", EphemeralError):
        squad = _fleet(environment)
        found = squad.instances(environment)
        if _status(environment, found).state == "gone":
            raise EnvironmentGoneError(
                f"the logs of {environment.id} are gone with it: it was destroyed, or has expired. "
                "Have them kept with: pytest --ephemeral-logs DIR"
            )
        texts = [console.output(squad.client, one["InstanceId"]) for one in found]
    return console.Log(texts, own=bool(environment.handle.get(PARTS)))


def _listens_elsewhere(table: str, address: str, ports: set[int]) -> str:
    """Compare ``/proc/net/tcp`` with what is due."""
    own = bytes(map(int, address.split("."))).hex().upper()
    own = "".join(reversed(re.findall("..", own)))
    rows = [row.split() for row in table.splitlines()[1:]]
    local = [row[1].split(":") for row in rows if len(row) > 3 and row[3] == "0A"]
    there = {int(port, 16) for host, port in local if host in {own, "00000000"}}
    if ports <= there:
        return ""
    due = ", ".join(map(str, sorted(ports - there)))
    only_inside = {int(port, 16) for host, port in local if host.endswith("7F")} - there
    if ports & only_inside:
        return f"it listens on 127.0.0.1:{min(ports & only_inside)}: let it listen on $HOST"
    others = ", ".join(map(str, sorted(there))) or "nothing"
    return f"nothing listens on {address} on port {due}, which the template says; {others} is open"


def _fleet(environment: Environment) -> Fleet:
    return fleet(environment.handle.get(REGION))


@contextmanager
def _explained(
    environment: Environment, what: str, error_type: Callable[[str], EphemeralError]
) -> Iterator[None]:
    """Turn what AWS refuses into our error."""
    from botocore.exceptions import ClientError

    try:
        with aws.explained():
            yield
    except ClientError as error:
        raise error_type(f"{environment.id} {what}: {launching.told(error)}") from error
