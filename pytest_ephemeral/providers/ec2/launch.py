"""Launch an environment: make the requests in order, and journal each before it is sent."""

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

#: Seconds after which EC2 has assigned a public address at the latest.
ADDRESSING: Final = 120.0


class LaunchPlan(NamedTuple):
    """The facts that a launch needs, of a new instance or of one from standby.

    Attributes:
        draft: The environment, as far as it is known; journaled.
        prices: The prices of instances.
    """

    template: Ec2Template
    image: Image
    watcher: InstanceWatcher
    region: str
    ami: str
    draft: Draft
    prices: prices.Prices


def begin(order: Order) -> LaunchPlan:
    """Find the AMI and the price of an order, check its cost limit, and journal its region.

    Raises:
        LaunchError: The template is not an EC2 template, or the image is in another region.
        ConfigurationError: The environment could cost more than its limit.
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
    """Launch the environment of an order; see ``Provider.launch``."""
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
    """Add the endpoints and the hourly price to an environment whose instances are launched.

    Raises:
        LaunchError: An instance gets no public address.
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
    """The entries in a handle by which an instance is kept; see ``SupportsStandby``."""
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
    """The hours until expiry, which may differ from the template's; 0 for no expiry."""
    if environment.expires_at is None:
        return 0.0
    return (environment.expires_at - environment.created_at).total_seconds() / 3600


class Draft:
    """An environment that is being launched; changes of its handle are journaled."""

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
    """Launch into the run's security group; if EC2 does not find the group, get a new one."""

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
    """The id of the run's security group with this ingress; empty if the template has groups."""
    if template.security_groups:
        return ""
    # Without a subnet, take the source address of the route to any outside address.
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
        LaunchError: It is larger than EC2 accepts.
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
        not_yet=(),  # a group that is not found may have been deleted: get a new one at once
        more=options(template, plan.image.handle),
    )


def options(template: Ec2Template, image: Mapping[str, str]) -> dict[str, Any]:
    """The optional parameters of ``RunInstances`` that a template sets.

    Args:
        template: The template.
        image: The image's handle, which lists volumes without ``DeleteOnTermination``.
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
    """By device: the settings of the template's volumes, and of the image's lasting volumes.

    A lasting volume has no ``DeleteOnTermination``. Its other properties are not changed.
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
    """Wait until an environment's instances have public addresses; return the instances."""

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
