"""Instances on standby: instances of ended environments, renewed, stopped and used again.

When an environment ends, its instance gets a new root volume from its AMI, which has no data of
the environment, and reboots from it. The boot script finds the standby tag, overwrites the copies
of the user data, and shuts the instance down, which stops it.

The user data of a stopped instance can be changed. For the next environment, the instance gets
that one's tags and user data, and is started. It keeps its client token, so a tag records the id
that the token was derived from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, Literal

from pytest_ephemeral import labels
from pytest_ephemeral.errors import EphemeralError, LaunchError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.ec2 import identity, launch, removal, resources, root_volumes
from pytest_ephemeral.providers.ec2.environments import find_living, get_watcher
from pytest_ephemeral.providers.ec2.errors import translate_errors
from pytest_ephemeral.providers.ec2.instance_watcher import INSTANCES, Instance, state
from pytest_ephemeral.providers.ec2.removal import GROUP
from pytest_ephemeral.providers.ec2.tags import (
    LAUNCHED_AS,
    STANDBY,
    STATE,
    format_expiry,
    tags_of,
    to_tags,
)
from pytest_ephemeral.providers.protocol import STANDBY_FITS, Order

_NOT_YET: Final = frozenset({"pending", "running", "stopping"})


class Ec2Standby:
    """The part of the ec2 provider that keeps instances; see ``SupportsStandby``."""

    def fits(self, order: Order, /) -> str:
        """A digest of the AMI, types, subnets, address, role, key pair and volume size.

        An instance on standby fits an order with the same digest.
        """
        if not getattr(order.template, "standby", 0):
            return ""
        with translate_errors(f"{order.environment.id} could not be launched", LaunchError):
            return launch.begin(order).draft.environment.handle.get(STANDBY_FITS, "")

    def renew(self, environment: Environment, until: datetime, /) -> None:
        """Tag its instance as standby, start replacing its root volume, and change its expiry."""
        with translate_errors("AWS refuses to renew it", EphemeralError):
            (instance,) = find_living(environment)
            if kept := ", ".join(root_volumes.other_volumes(instance)):
                raise EphemeralError(f"its AMI has volumes besides its root ({kept})")
            client, id = get_watcher(environment).client, str(instance["InstanceId"])
            _set(client, id, InstanceInitiatedShutdownBehavior={"Value": "stop"})
            client.create_tags(Resources=[id], Tags=to_tags({STATE: STANDBY}))
            root_volumes.begin(client, id, str(instance["ImageId"]))
            # Last: an instance that could not be renewed expires when its environment would.
            client.create_tags(
                Resources=[id, *_interfaces(instance)],
                Tags=to_tags({labels.EXPIRES: format_expiry(until)}),
            )

    def readiness(self, standby: Environment, /) -> Literal["ready", "not yet", "broken"]:
        """Read from the instance's state and tags, and from the last root volume replacement."""
        with translate_errors(f"{standby.id} can't be inspected", EphemeralError):
            watcher, ids = get_watcher(standby), standby.handle[INSTANCES].split(",")
            identity.check_instances(watcher, standby, ids)
            found = resources.describe_instances(watcher.client, ids)
            answer = watcher.client.describe_replace_root_volume_tasks(
                Filters=[{"Name": "instance-id", "Values": ids}]
            )
        last = _last_state(answer["ReplaceRootVolumeTasks"])
        if len(found) != 1 or tags_of(found[0]).get(STATE) != STANDBY:
            return "broken"
        if state(found[0]) in _NOT_YET and last in {
            root_volumes.SUCCEEDED,
            *root_volumes.UNDER_WAY,
        }:
            return "not yet"
        is_ready = state(found[0]) == "stopped" and last == root_volumes.SUCCEEDED
        return "ready" if is_ready else "broken"

    def restart(self, order: Order, standby: Environment, /) -> Environment:
        """Give its instance the order's tags, user data and group, and start it."""
        what = f"{order.environment.id} could not be started"
        with translate_errors(what, LaunchError):
            plan = launch.begin(order)
            client, id = plan.watcher.client, standby.handle[INSTANCES]
            group = launch.join_group(plan.watcher, order.environment, plan.template)
            plan.draft.note({GROUP: group})
            (instance,) = resources.describe_instances(client, [id])
            known = tags_of(instance)
            tags = {
                **launch.tags_for(order.environment, plan.template),
                LAUNCHED_AS: known.get(LAUNCHED_AS) or standby.id,
            }
            client.create_tags(Resources=[id, *_interfaces(instance)], Tags=to_tags(tags))
            moved = _as_it_will_be(instance, {**known, **tags}, group)
            plan.watcher.adopt(moved)
            plan.draft.note({INSTANCES: id})
            _set(client, id, UserData={"Value": launch.script_of(order, plan).encode()})
            _set(client, id, InstanceInitiatedShutdownBehavior={"Value": "terminate"})
            if group:
                _set(client, id, Groups=[group])
            client.start_instances(InstanceIds=[id])
            return launch.finish(plan, [moved])

    def let_go(self, standby: Environment, /) -> None:
        """Delete the group that its instance has left, unless others use it."""
        with translate_errors(f"the group of {standby.id} could not be removed"):
            removal.leave_groups(get_watcher(standby), standby)


def _as_it_will_be(instance: Instance, tags: Mapping[str, str], group: str) -> Instance:
    """The description of a moved instance that EC2 will return in a moment."""
    changes: dict[str, Any] = {"Tags": to_tags(tags), "State": {"Name": "pending"}}
    if group:
        groups = [{"GroupId": group}]
        interfaces = instance.get("NetworkInterfaces", ())
        changes["SecurityGroups"] = groups
        changes["NetworkInterfaces"] = [{**one, "Groups": groups} for one in interfaces]
    return {**instance, **changes}


def _set(client: Any, id: str, **attribute: Any) -> None:
    client.modify_instance_attribute(InstanceId=id, **attribute)


def _interfaces(instance: Instance) -> list[str]:
    """The ids of an instance's network interfaces.

    Its new root volume needs no tags: it is deleted with the instance.
    """
    return [str(one["NetworkInterfaceId"]) for one in instance.get("NetworkInterfaces", ())]


def _last_state(tasks: Iterable[Mapping[str, Any]]) -> str:
    """The state of the newest root volume replacement; empty if there is none."""
    states = {str(one["StartTime"]): str(one["TaskState"]) for one in tasks}
    return states[max(states)] if states else ""
