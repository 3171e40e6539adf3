"""Launch an environment: what is requested, in which order, and what is journaled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from pytest_ephemeral import aws, labels
from pytest_ephemeral.errors import LaunchError
from pytest_ephemeral.models import Endpoint, Environment, Image
from pytest_ephemeral.providers import waiting
from pytest_ephemeral.providers.ec2 import (
    amis,
    identity,
    prices,
    resources,
    run_instances,
    security_groups,
    user_data,
)
from pytest_ephemeral.providers.ec2.environments import ENDED, PARTS, REGION, status_of
from pytest_ephemeral.providers.ec2.instance_watcher import (
    INSTANCES,
    Instance,
    InstanceWatcher,
    state,
    watch_region,
)
from pytest_ephemeral.providers.ec2.removal import GROUP
from pytest_ephemeral.providers.ec2.tables import Ec2Template
from pytest_ephemeral.providers.ec2.tags import STATE, USED
from pytest_ephemeral.providers.endpoints import make_endpoints
from pytest_ephemeral.providers.protocol import (
    HOURLY,
    STANDBY_COUNT,
    STANDBY_FITS,
    STANDBY_SECONDS,
    Order,
)

#: Seconds in which EC2 assigns a public address.
ADDRESSING: Final = 120.0


class LaunchPlan(NamedTuple):
    """What launching begins with, and so does starting an instance that was on standby.

    Attributes:
        draft: The environment, as far as it is known; journaled.
        prices: What instances cost.
    """

    template: Ec2Template
    image: Image
    watcher: InstanceWatcher
    region: str
    ami: str
    draft: Draft
    prices: prices.Prices


def begin(order: Order) -> LaunchPlan:
    """Find what an order needs, hold it against what it may cost, and journal where it will be.

    Raises:
        LaunchError: Its template is not one for EC2, or its image is not in its region.
        ConfigurationError: It could cost more than it may.
    """
    template, image = order.template, order.image
    if not isinstance(template, Ec2Template) or image is None:
        raise LaunchError(
            f"{order.environment.id}: template {order.template.name!r} is not an EC2 template"
        )
    watcher = watch_region(template.region or image.handle.get(REGION))
    region = str(watcher.client.meta.region_name)
    table = prices.of(template, order.root)
    prices.check(template, table, region, _hours(order.environment))
    ami = amis.find_in_region(watcher.client, image, region)
    draft = Draft(order)
    draft.note(
        {
            REGION: region,
            **identity.account_of(region),
            PARTS: " ".join(template.processes()),
            **standby_facts(template, region, ami),
        }
    )
    return LaunchPlan(template, image, watcher, region, ami, draft, table)


def launch(order: Order) -> Environment:
    """Launch what an order asks for; see ``Provider.launch``."""
    plan = begin(order)
    watcher, draft = plan.watcher, plan.draft
    launched = _launch_into_group(
        watcher,
        draft,
        plan.template,
        lambda groups: _request(order, plan, groups),
    )
    draft.forget(run_instances.REQUEST)
    draft.note({INSTANCES: ",".join(one["InstanceId"] for one in launched)})
    watcher.add(launched)
    return finish(plan, launched)


def finish(plan: LaunchPlan, launched: list[Instance]) -> Environment:
    """An environment whose instances are launched, with its endpoints and what it costs.

    Raises:
        LaunchError: It gets no public address.
    """
    template, watcher, draft = plan.template, plan.watcher, plan.draft
    hourly = plan.prices.hourly(launched[0]["InstanceType"], plan.region)
    if hourly is not None:
        draft.note({HOURLY: f"{hourly * template.count:g}"}, journal=False)
    watcher.groups.confirm(draft.environment, draft.environment.handle[GROUP])
    if template.address == "public":
        launched = _wait_for_addresses(watcher, draft.environment)
    return _with_endpoints(draft.environment, template, launched)


def standby_facts(template: Ec2Template, region: str, ami: str) -> dict[str, str]:
    """What a handle says of a template's instances that are kept; see ``SupportsStandby``."""
    if not template.standby:
        return {}
    facts = [
        *(region, ami, template.instance_types(), template.subnets(), template.security_groups),
        *(template.address, template.instance_profile, template.key_name, template.volume_size),
    ]
    return {
        STANDBY_FITS: hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32],
        STANDBY_COUNT: str(template.standby),
        STANDBY_SECONDS: f"{template.standby_ttl:g}",
    }


def _hours(environment: Environment) -> float:
    """How long it may live: whoever launches it decides, not always its template."""
    if environment.expires_at is None:
        return 0.0
    return (environment.expires_at - environment.created_at).total_seconds() / 3600


class Draft:
    """An environment that is being launched: what its handle gets is journaled first."""

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


def _launch_into_group(
    watcher: InstanceWatcher,
    draft: Draft,
    template: Ec2Template,
    request: Callable[[list[str]], run_instances.InstanceRequest],
) -> list[Instance]:
    """Launch into the run's group; one that was just deleted, or is not visible, is replaced."""

    def launch_once() -> list[Instance]:
        own = join_group(watcher, draft.environment, template)
        draft.note({GROUP: own})
        return run_instances.run(
            watcher.client,
            request([own] if own else list(template.security_groups)),
            lambda sent: draft.note({run_instances.REQUEST: sent}),
        )

    def is_without_group(error: Exception) -> bool:
        own = draft.environment.handle.get(GROUP)
        if not own or aws.code(error) not in security_groups.GONE:
            return False
        watcher.groups.forget(draft.environment, own)
        return True

    return waiting.retry(
        launch_once,
        when=is_without_group,
        within=security_groups.UNSEEN,
        every=security_groups.PAUSE,
    )


def join_group(watcher: InstanceWatcher, environment: Environment, template: Ec2Template) -> str:
    """The group of its run that has its ingress; empty if it joins the user's instead."""
    if template.security_groups:
        return ""
    # Without a subnet, the route to any address outside decides.
    vpc, target = None, "10.0.0.1"
    if template.subnets():
        vpc, target = resources.find_vpc(watcher.client, template.subnets()[0])
    permissions = security_groups.permissions_for(
        template.ingress,
        template.endpoints().values(),
        target,
        public=template.address == "public",
    )
    return watcher.groups.join(environment, vpc, permissions)


def script_of(order: Order, plan: LaunchPlan) -> str:
    """The user data of an order's instances.

    Raises:
        LaunchError: It is more than EC2 takes.
    """
    template, prefix = plan.template, plan.image.handle.get("prefix", "")
    script = user_data.boot_script(
        order.environment,
        template,
        order.variables,
        order.secrets,
        prefix,
        standby=bool(template.standby),
    )
    if len(script.encode()) > user_data.LIMIT:
        raise LaunchError(
            f"templates.{template.name}: its variables, command and user-data make "
            f"{len(script.encode())} bytes of user data, and EC2 accepts at most "
            f"{user_data.LIMIT}: put large files into the image"
        )
    return script


def tags_for(environment: Environment, template: Ec2Template) -> dict[str, str]:
    """The tags of an environment's instances."""
    state = {STATE: USED} if template.standby else {}
    return {**environment.labels, **state, "Name": environment.id}


def _request(order: Order, plan: LaunchPlan, groups: list[str]) -> run_instances.InstanceRequest:
    template = plan.template
    return run_instances.InstanceRequest(
        id=order.environment.id,
        image=plan.ami,
        types=template.instance_types(),
        subnets=template.subnets(),
        groups=groups,
        tags=tags_for(order.environment, template),
        user_data=script_of(order, plan),
        secret=bool(order.secrets),
        public=template.address == "public",
        count=template.count,
        not_yet=(),  # a group that is not found may have been deleted: it is created anew
        more=options(template, plan.image.handle),
    )


def options(template: Ec2Template, image: Mapping[str, str]) -> dict[str, Any]:
    """What a template may add to a request.

    Args:
        template: Which.
        image: Its image's handle, which says what volumes that has.
    """
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
    if volumes := _volumes(template, image):
        more["BlockDeviceMappings"] = [
            {"DeviceName": name, "Ebs": {**volume, "DeleteOnTermination": True}}
            for name, volume in volumes.items()
        ]
    return more


def _volumes(template: Ec2Template, image: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """By device: the image's that would outlive their instance, and the template's.

    All other properties of an image's volume stay as the image has them.
    """
    found: dict[str, dict[str, Any]] = {}
    for one in image.get(amis.OUTLIVING, "").split():
        name, _, gibibytes = one.partition("=")
        found[name] = {"VolumeSize": int(gibibytes)} if gibibytes else {}
    if template.volume_size is not None:
        root = image.get("root-device") or "/dev/xvda"
        found[root] = {"VolumeSize": template.volume_size}
    for name, size in template.volumes.items():
        found[name] = {"VolumeSize": size, **({} if name in found else {"VolumeType": "gp3"})}
    return found


def _wait_for_addresses(watcher: InstanceWatcher, environment: Environment) -> list[Instance]:
    """Its instances, once they have public addresses."""

    def are_settled(seen: list[Instance]) -> bool:
        return any(state(one) in ENDED for one in seen) or (
            bool(seen) and all(one.get("PublicIpAddress") for one in seen)
        )

    watcher.look([environment.labels[labels.RUN]])
    if not are_settled(watcher.recall(environment)):
        watcher.wait(environment, are_settled, ADDRESSING)
    found = watcher.instances(environment)
    if not found or not all(one.get("PublicIpAddress") for one in found):
        status = status_of(environment, found)
        raise LaunchError(
            f"{environment.id} has no public address: {status.detail or 'none was given'}. Its "
            'subnet needs a route to the internet; without one, set address = "private"'
        )
    return found


def _with_endpoints(
    environment: Environment, template: Ec2Template, launched: Sequence[Instance]
) -> Environment:
    key = "PublicIpAddress" if template.address == "public" else "PrivateIpAddress"
    endpoints: dict[str, Endpoint] = {}
    for place, instance in enumerate(launched):
        found = make_endpoints(str(instance[key]), template.endpoints(), template.scheme)
        endpoints |= {f"{name}-{place + 1}" if place else name: at for name, at in found.items()}
    url = next((endpoint.url for endpoint in endpoints.values()), "")
    return msgspec.structs.replace(environment, endpoints=endpoints, url=url)
