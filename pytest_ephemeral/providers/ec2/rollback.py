"""Roll back environments on EC2: each instance gets a new root volume from its AMI.

An AMI has the state before the first boot. So the instances boot as they did at first, and are
seeded again.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from pytest_ephemeral import aws
from pytest_ephemeral.errors import ConfigurationError, EphemeralError, UnavailableError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers import external_state
from pytest_ephemeral.providers.ec2 import amis, root_volumes
from pytest_ephemeral.providers.ec2.environments import find_living, get_watcher
from pytest_ephemeral.providers.ec2.errors import translate_errors
from pytest_ephemeral.providers.ec2.instance_watcher import INSTANCES
from pytest_ephemeral.providers.ec2.tables import Ec2Template
from pytest_ephemeral.providers.protocol import UNSEEDED, Order
from pytest_ephemeral.tables import Template


class Ec2Rollback:
    """The part of the ec2 provider that rolls environments back; see ``SupportsRollback``."""

    def check_rollback(self, template: Template, root: Path, /) -> None:  # noqa: ARG002
        """Refuse volumes, local disks and databases elsewhere: only root volumes are replaced."""
        assert isinstance(template, Ec2Template)
        where = f"templates.{template.name}"
        if template.volumes:
            raise _keeps(f"{where}.volumes", "data on them stays")
        commands = template.processes().values()
        external_state.refuse_databases(template, dict(os.environ), commands=commands)
        with translate_errors(
            f"{where}: the disks of its instance-type can't be looked up", UnavailableError
        ):
            client = aws.client("ec2", template.region)
            found = client.describe_instance_types(InstanceTypes=template.instance_types())
        for one in found["InstanceTypes"]:
            if one.get("InstanceStorageSupported"):
                raise _keeps(
                    f"{where}.instance-type", f"{one['InstanceType']} has disks of its own"
                )

    def take_baseline(self, order: Order, /) -> Environment:
        """Use the AMI as the baseline; warn how long each rollback takes."""
        environment = order.environment
        for instance in find_living(environment):
            if kept := ", ".join(root_volumes.other_volumes(instance)):
                raise EphemeralError(
                    f"the AMI of {environment.id} has volumes besides its root ({kept}), which a "
                    "rollback does not replace: write a command that puts them back (`reset`)"
                )
        order.warn("each rollback takes AWS minutes: it replaces the root volume, and boots again")
        handle = {**environment.handle, UNSEEDED: "the AMI"}
        return msgspec.structs.replace(environment, handle=handle)

    def roll_back(self, order: Order, /) -> Environment:
        """Replace the root volumes of its instances, which keep their addresses.

        Raises:
            EphemeralError: An instance has ended, or AWS refuses.
        """
        environment, watcher = order.environment, get_watcher(order.environment)
        assert order.image is not None
        ids = {str(one["InstanceId"]) for one in find_living(environment)}
        if ended := set(environment.handle[INSTANCES].split(",")) - ids:
            raise EphemeralError(f"the instance {' '.join(sorted(ended))} has ended")
        with translate_errors("AWS refuses to replace its root volume", EphemeralError):
            region = str(watcher.client.meta.region_name)
            image = amis.find_in_region(watcher.client, order.image, region)
            root_volumes.replace(watcher.client, sorted(ids), image)
        for id in ids:
            watcher.consoles.forget(id)
        return environment


def _keeps(where: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"{where}: a rollback replaces the root volume, and {why}: write a command that puts it "
        "back (`reset`), or give each test an environment of its own"
    )
