"""The ec2 provider: instances, in security groups with the ingress of their template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from pytest_ephemeral import aws, aws_retries
from pytest_ephemeral.errors import (
    ConfigurationError,
    EphemeralError,
    LaunchError,
)
from pytest_ephemeral.labels import EXPIRES, NEVER
from pytest_ephemeral.models import Environment, Image
from pytest_ephemeral.providers.ec2 import identity, permissions, prices, removal, resources
from pytest_ephemeral.providers.ec2.baking import Ec2Baker
from pytest_ephemeral.providers.ec2.doctor import checks
from pytest_ephemeral.providers.ec2.environments import (
    REGION,
    Instances,
    find_living,
    get_watcher,
)
from pytest_ephemeral.providers.ec2.errors import translate_errors
from pytest_ephemeral.providers.ec2.instance_watcher import Instance
from pytest_ephemeral.providers.ec2.launch import launch
from pytest_ephemeral.providers.ec2.regions import Known, RegionalProvider
from pytest_ephemeral.providers.ec2.removal import GROUP
from pytest_ephemeral.providers.ec2.rollback import Ec2Rollback
from pytest_ephemeral.providers.ec2.standby import Ec2Standby
from pytest_ephemeral.providers.ec2.tables import Ec2Recipe, Ec2Template
from pytest_ephemeral.providers.ec2.tags import format_expiry, tags_of, to_tags
from pytest_ephemeral.providers.protocol import Check, Order, Owned
from pytest_ephemeral.tables import Recipe, Template


class Ec2Provider(Instances, RegionalProvider, Ec2Baker, Ec2Rollback, Ec2Standby):
    """See ``Provider``."""

    name: ClassVar[str] = "ec2"
    template_type: ClassVar[type[Template]] = Ec2Template
    recipe_type: ClassVar[type[Recipe] | None] = Ec2Recipe
    forwards_ports: ClassVar[bool] = False

    def doctor(self) -> Sequence[Check]:
        """Check that boto3 is installed and that the credentials are valid."""
        return checks()

    def check_permissions(
        self,
        templates: Sequence[Template],
        recipes: Sequence[Recipe],
        root: Path,  # noqa: ARG002
    ) -> Sequence[Check]:
        return permissions.check(templates, recipes)

    def preflight(
        self, template: Template, recipes: Sequence[Recipe], root: Path, lifetime: float | None
    ) -> None:
        """Check the credentials, the region and the cost limit.

        Raises:
            ConfigurationError: The template is not an EC2 template, or could cost too much.
            UnavailableError: AWS can't be reached, or refuses the credentials.
        """
        if not isinstance(template, Ec2Template):
            raise ConfigurationError(f"template {template.name!r} is not an EC2 template")
        named = (one.region for one in recipes if isinstance(one, Ec2Recipe) and one.region)
        region = str(aws.client("ec2", template.region or next(named, None)).meta.region_name)
        aws.identity(region)
        if lifetime is not None:
            prices.check(template, prices.of(template, root), region, lifetime / 3600)

    def launch(self, order: Order) -> Environment:
        """Find or create the run's security group, then launch the instances into it."""
        what = f"{order.environment.id} could not be launched"
        with translate_errors(what, LaunchError), aws_retries.tell_of_retries(order.tell):
            return launch(order)

    def extend(self, environment: Environment, expires_at: datetime | None) -> None:
        """Change the expiry tag, which the guest's timer reads; for None, protect it, too."""
        found = find_living(environment)
        with translate_errors(f"{environment.id} could not be extended", EphemeralError):
            _extend(get_watcher(environment).client, environment, found, expires_at)

    def keep(self, environment: Environment) -> None:
        """Check that it runs: nothing else is needed to keep it."""
        find_living(environment)

    def destroy(self, environment: Environment) -> None:
        """Terminate the instances, then delete their group, unless others use it."""
        self.destroy_in_stages(environment, lambda: None)

    def destroy_in_stages(self, environment: Environment, accepted: Callable[[], None]) -> None:
        """See ``SupportsStagedDestroy``; accepted once EC2 has begun to terminate its instances."""
        with translate_errors(f"{environment.id} could not be destroyed"):
            removal.destroy(get_watcher(environment), environment, accepted)

    def list_owned_in(self, region: str) -> Sequence[Owned]:
        """All resources of environments and bakes in a region, found by their tags."""
        with translate_errors(f"the resources in {region} can't be listed"):
            return resources.list_owned(aws.client("ec2", region))

    def _regions_of(self, one: Known) -> Sequence[str | None]:
        match one:
            case Ec2Recipe():
                return [one.region, *one.copy_to]
            case Ec2Template():
                return [one.region]
            case Environment() | Image() if one.provider == self.name:
                return [one.handle.get(REGION)]
        return []

    def sweep_all(
        self, owned: Sequence[Owned], condition: Callable[[Owned], bool]
    ) -> Mapping[str, EphemeralError | None]:
        """See ``SupportsBulkSweep``; one region after the other."""
        outcome: dict[str, EphemeralError | None] = {}
        for region in sorted({one.region for one in owned}):
            there = [one for one in owned if one.region == region]
            try:
                with translate_errors(f"the resources in {region} can't be removed"):
                    outcome |= removal.sweep(aws.client("ec2", region or None), there, condition)
            except EphemeralError as error:
                outcome |= {one.id: error for one in there if one.id not in outcome}
        return outcome


def _extend(
    client: Any, environment: Environment, living: Sequence[Instance], expires_at: datetime | None
) -> None:
    """Change the expiry in the tags; for None, also protect the instances from termination."""
    if expires_at is None and any(one.get("InstanceLifecycle") == "spot" for one in living):
        raise EphemeralError(
            f"{environment.id} runs on spot instances (spot = true), which AWS may interrupt and "
            "does not protect: promote an environment of a template without spot"
        )
    resources = [name for one in living for name in _resources(one)]
    group = environment.handle.get(GROUP)
    if group and identity.check_group(client, environment, group):
        resources.append(group)
    was_armed = tags_of(living[0]).get(EXPIRES) != NEVER
    client.create_tags(Resources=resources, Tags=to_tags({EXPIRES: format_expiry(expires_at)}))
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
    """The ids of an instance, and of the volumes and interfaces that are deleted with it."""
    yield str(instance["InstanceId"])
    for device in instance.get("BlockDeviceMappings", ()):
        yield str(device["Ebs"]["VolumeId"])
    for interface in instance.get("NetworkInterfaces", ()):
        yield str(interface["NetworkInterfaceId"])
