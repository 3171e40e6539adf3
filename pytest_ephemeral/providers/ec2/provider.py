"""Environments on EC2: instances in a group that lets in whom they say, seen by one shared look."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from pytest_ephemeral import aws
from pytest_ephemeral.errors import (
    ConfigurationError,
    DestroyError,
    EphemeralError,
    LaunchError,
)
from pytest_ephemeral.labels import EXPIRES, NEVER
from pytest_ephemeral.models import Environment, Image
from pytest_ephemeral.providers.ec2 import belongings, destroying, identity, prices, sweeping
from pytest_ephemeral.providers.ec2.baking import Ec2Baker
from pytest_ephemeral.providers.ec2.bringing_up import bring_up
from pytest_ephemeral.providers.ec2.destroying import GROUP
from pytest_ephemeral.providers.ec2.doctor import checks
from pytest_ephemeral.providers.ec2.environments import (
    REGION,
    Instances,
    asked,
    explained,
    fleet_of,
    living,
)
from pytest_ephemeral.providers.ec2.fleet import Instance
from pytest_ephemeral.providers.ec2.tables import Ec2Recipe, Ec2Template
from pytest_ephemeral.providers.ec2.tagging import as_tags, expiry, tags_of
from pytest_ephemeral.providers.protocol import Check, Order, Owned
from pytest_ephemeral.tables import Recipe, Template


class Ec2Provider(Instances, Ec2Baker):
    """See ``Provider`` for what is promised."""

    name: ClassVar[str] = "ec2"
    template_type: ClassVar[type[Template]] = Ec2Template
    recipe_type: ClassVar[type[Recipe] | None] = Ec2Recipe
    guards_itself: ClassVar[bool] = False
    forwards_ports: ClassVar[bool] = False

    def doctor(self) -> Sequence[Check]:
        """Whether AWS can be asked."""
        return checks()

    def preflight(
        self, template: Template, recipes: Sequence[Recipe], root: Path, lifetime: float | None
    ) -> None:
        """Whether there are credentials and a region, and it costs no more than it may."""
        if not isinstance(template, Ec2Template):
            raise ConfigurationError(f"template {template.name!r} is not an EC2 template")
        named = (one.region for one in recipes if isinstance(one, Ec2Recipe) and one.region)
        region = str(aws.client("ec2", template.region or next(named, None)).meta.region_name)
        aws.identity(region)
        if lifetime is not None:
            prices.check(template, prices.of(template, root), region, lifetime / 3600)

    def launch(self, order: Order) -> Environment:
        """Its run's security group, then instances of whichever type there is capacity for."""
        with explained(order.environment, "could not be launched", LaunchError):
            return bring_up(order)

    def extend(self, environment: Environment, expires_at: datetime | None) -> None:
        """Move the tag that the guest's own clock reads; never also means protected."""
        found = living(environment)
        with explained(environment, "could not be extended", EphemeralError):
            _extend(fleet_of(environment).client, environment, found, expires_at)

    def keep(self, environment: Environment) -> None:
        """Nothing to do: it is no process of the owner's, and the ledger says that it stays."""
        living(environment)

    def destroy(self, environment: Environment) -> None:
        """Instances, then their group, unless others are in it."""
        with explained(environment, "could not be destroyed", DestroyError):
            destroying.destroy(fleet_of(environment), environment)

    def regions(self, known: Iterable[Template | Recipe | Environment | Image]) -> Sequence[str]:
        """The regions where it may have something, boto3's own first."""
        with aws.explained():
            found = [str(aws.client("ec2").meta.region_name)]
        for one in known:
            found += filter(None, _regions_of(one))
        return list(dict.fromkeys(found))

    def list_owned(self) -> Iterator[Owned]:
        """All in boto3's region that is tagged as ours, bakes and what they left included."""
        yield from self.list_owned_in(self.regions(())[0])

    def list_owned_in(self, region: str) -> Sequence[Owned]:
        """All in a region."""
        with asked(f"what is in {region} can't be seen"):
            return belongings.owned(aws.client("ec2", region))

    def sweep(self, owned: Owned) -> None:
        """Remove all that carries its id; what is protected from termination stays."""
        if error := self.sweep_all([owned], lambda _: True).get(owned.id):
            raise error

    def sweep_all(
        self, owned: Sequence[Owned], still: Callable[[Owned], bool]
    ) -> Mapping[str, EphemeralError | None]:
        """A region at a time, all of it at once."""
        outcome: dict[str, EphemeralError | None] = {}
        for region in sorted({one.region for one in owned}):
            there = [one for one in owned if one.region == region]
            try:
                with asked(f"what is in {region} can't be removed"):
                    outcome |= sweeping.sweep(aws.client("ec2", region or None), there, still)
            except EphemeralError as error:
                outcome |= {one.id: error for one in there if one.id not in outcome}
        return outcome


def _regions_of(one: Template | Recipe | Environment | Image) -> list[str | None]:
    match one:
        case Ec2Recipe():
            return [one.region, *one.copy_to]
        case Ec2Template():
            return [one.region]
        case Environment() | Image() if one.provider == Ec2Provider.name:
            return [one.handle.get(REGION)]
    return []


def _extend(
    client: Any, environment: Environment, living: Sequence[Instance], expires_at: datetime | None
) -> None:
    """Tags first for a longer life; for none at all, whatever else could end it is disarmed too."""
    if expires_at is None and any(one.get("InstanceLifecycle") == "spot" for one in living):
        raise EphemeralError(
            f"{environment.id} runs on spare capacity (spot = true), which AWS may take back and "
            "does not protect: promote one of a template without it"
        )
    resources = [name for one in living for name in _resources(one)]
    group = environment.handle.get(GROUP)
    if group and identity.check_group(client, environment, group):
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
