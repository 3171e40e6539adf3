"""Instances on standby: kept from environments that have ended, renewed and stopped.

When an environment ends, its instance gets a new root volume from its AMI, so that nothing of what
was written remains, and reboots into it. The boot script finds the tag that says so, overwrites
what the last environment was given, and shuts the instance down, which stops it.

A stopped instance runs nothing, and its user data can be changed: it becomes another environment's
by its tags, gets that one's user data, and is started. It keeps the client token that it was
launched with, so a tag says whose that is.
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
        """The same AMI, type, subnets, address, role, key and volume; by their digest."""
        if not getattr(order.template, "standby", 0):
            return ""
        with translate_errors(f"{order.environment.id} could not be launched", LaunchError):
            return launch.begin(order).draft.environment.handle.get(STANDBY_FITS, "")

    def renew(self, environment: Environment, until: datetime, /) -> None:
        """Mark its instance, have its root volume replaced, and then move its expiry."""
        with translate_errors("AWS refuses to renew it", EphemeralError):
            (instance,) = find_living(environment)
            if kept := ", ".join(root_volumes.other_volumes(instance)):
                raise EphemeralError(f"its AMI has volumes besides its root ({kept})")
            client, id = get_watcher(environment).client, str(instance["InstanceId"])
            _set(client, id, InstanceInitiatedShutdownBehavior={"Value": "stop"})
            client.create_tags(Resources=[id], Tags=to_tags({STATE: STANDBY}))
            root_volumes.begin(client, id, str(instance["ImageId"]))
            # Not before: what is not renewed expires when its environment would have.
            client.create_tags(
                Resources=[id, *_interfaces(instance)],
                Tags=to_tags({labels.EXPIRES: format_expiry(until)}),
            )

    def readiness(self, standby: Environment, /) -> Literal["ready", "not yet", "broken"]:
        """By its own state and tags, and by what has become of its root volume."""
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
        """Move its instance by its tags, give it the order's user data and group, and start it."""
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
        """Its instance is in another group now: the one that it was in may be nobody's."""
        with translate_errors(f"the group of {standby.id} could not be removed"):
            removal.leave_groups(get_watcher(standby), standby)


def _as_it_will_be(instance: Instance, tags: Mapping[str, str], group: str) -> Instance:
    """An instance that has moved, as looks will show it in a moment."""
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
    """The network interfaces of an instance. Its new root volume has no tags, and goes with it."""
    return [str(one["NetworkInterfaceId"]) for one in instance.get("NetworkInterfaces", ())]


def _last_state(tasks: Iterable[Mapping[str, Any]]) -> str:
    """The state of the replacement that began last; empty if there is none."""
    states = {str(one["StartTime"]): str(one["TaskState"]) for one in tasks}
    return states[max(states)] if states else ""
