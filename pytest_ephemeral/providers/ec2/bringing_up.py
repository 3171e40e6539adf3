"""Bringing an environment up: what is asked for, in which order, and what is journaled."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from pytest_ephemeral import aws
from pytest_ephemeral.errors import LaunchError
from pytest_ephemeral.models import Endpoint, Environment, Image
from pytest_ephemeral.providers.ec2 import (
    amis,
    belongings,
    groups,
    guest,
    identity,
    launching,
    prices,
)
from pytest_ephemeral.providers.ec2.destroying import GROUP, INSTANCES
from pytest_ephemeral.providers.ec2.environments import ENDED, PARTS, REGION, status_of
from pytest_ephemeral.providers.ec2.fleet import Fleet, Instance, fleet, state
from pytest_ephemeral.providers.ec2.tables import Ec2Template
from pytest_ephemeral.providers.endpoints import make_endpoints
from pytest_ephemeral.providers.protocol import HOURLY, Order

#: Seconds in which a public address is given.
ADDRESSING: Final = 120.0


def bring_up(order: Order) -> Environment:
    """Launch what an order asks for; see ``Provider.launch``."""
    template, image = order.template, order.image
    if not isinstance(template, Ec2Template) or image is None:
        raise LaunchError(
            f"{order.environment.id}: template {order.template.name!r} is not an EC2 template"
        )
    squad = fleet(template.region or image.handle.get(REGION))
    region = str(squad.client.meta.region_name)
    table = prices.of(template, order.root)
    prices.check(template, table, region, _hours(order.environment))
    ami = amis.in_region(squad.client, image, region)
    draft = _Draft(order)
    draft.note(
        {REGION: region, **identity.account_of(region), PARTS: " ".join(template.processes())}
    )
    launched = _launched(
        squad, draft, template, lambda joined: _wanted(order, template, image, ami, joined)
    )
    draft.forget(launching.REQUEST)
    draft.note({INSTANCES: ",".join(one["InstanceId"] for one in launched)})
    hourly = table.hourly(launched[0]["InstanceType"], region)
    if hourly is not None:
        draft.note({HOURLY: f"{hourly * template.count:g}"}, journal=False)
    squad.add(launched)
    squad.ingress.arrived(draft.environment, draft.environment.handle[GROUP])
    if template.address == "public":
        launched = _addressed(squad, draft.environment)
    return _with_endpoints(draft.environment, template, launched)


def _hours(environment: Environment) -> float:
    """How long it may live: by the word of whoever launches it, not always its template's."""
    if environment.expires_at is None:
        return 0.0
    return (environment.expires_at - environment.created_at).total_seconds() / 3600


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


def _launched(
    squad: Fleet,
    draft: _Draft,
    template: Ec2Template,
    wanted: Callable[[list[str]], launching.Wanted],
) -> list[Instance]:
    """Launch into the run's group; one that just went, or can't be seen yet, is looked for anew."""
    from botocore.exceptions import ClientError

    deadline = time.monotonic() + groups.UNSEEN
    while True:
        own = _own_group(squad, draft.environment, template)
        draft.note({GROUP: own})
        joined = [own] if own else list(template.security_groups)
        try:
            return launching.run(
                squad.client, wanted(joined), lambda sent: draft.note({launching.REQUEST: sent})
            )
        except ClientError as error:
            if not own or aws.code(error) not in groups.GONE or time.monotonic() > deadline:
                raise
            squad.ingress.lost(draft.environment, own)
            time.sleep(groups.PAUSE)


def _own_group(squad: Fleet, environment: Environment, template: Ec2Template) -> str:
    """Its run's group for whom it lets in; none if it joins the user's instead."""
    if template.security_groups:
        return ""
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
    return squad.ingress.join(environment, vpc, permissions)


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
        young=(),  # a group that is not known may have gone with its last: it is made anew
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
    if volumes := _volumes(template, image):
        more["BlockDeviceMappings"] = [
            {"DeviceName": name, "Ebs": {**volume, "DeleteOnTermination": True}}
            for name, volume in volumes.items()
        ]
    return more


def _volumes(template: Ec2Template, image: Image) -> dict[str, dict[str, Any]]:
    """By device: the image's that would outlive their instance, and the template's.

    What is not said of an image's volume stays as the image has it.
    """
    found: dict[str, dict[str, Any]] = {}
    for one in image.handle.get(amis.OUTLIVING, "").split():
        name, _, gibibytes = one.partition("=")
        found[name] = {"VolumeSize": int(gibibytes)} if gibibytes else {}
    if template.volume_size is not None:
        root = image.handle.get("root-device") or "/dev/xvda"
        found[root] = {"VolumeSize": template.volume_size}
    for name, size in template.volumes.items():
        found[name] = {"VolumeSize": size, **({} if name in found else {"VolumeType": "gp3"})}
    return found


def _addressed(squad: Fleet, environment: Environment) -> list[Instance]:
    """Its instances, once they have public addresses."""

    def content(seen: list[Instance]) -> bool:
        return any(state(one) in ENDED for one in seen) or (
            bool(seen) and all(one.get("PublicIpAddress") for one in seen)
        )

    squad.wait(environment, content, ADDRESSING)
    found = squad.instances(environment)
    if not found or not all(one.get("PublicIpAddress") for one in found):
        status = status_of(environment, found)
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
        found = make_endpoints(str(instance[key]), template.endpoints(), template.scheme)
        endpoints |= {f"{name}-{place + 1}" if place else name: at for name, at in found.items()}
    url = next((endpoint.url for endpoint in endpoints.values()), "")
    return msgspec.structs.replace(environment, endpoints=endpoints, url=url)
