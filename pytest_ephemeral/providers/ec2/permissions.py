"""Check by ``DryRun`` whether EC2 would let a project launch and bake; nothing is created.

A call that changes or removes a resource needs one that exists. It is checked only if there is an
instance of an environment or a bake.
https://docs.aws.amazon.com/AWSEC2/latest/APIReference/CommonParameters.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from pytest_ephemeral import aws, labels
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.providers.ec2 import amis, launch, resources, run_instances, transfers
from pytest_ephemeral.providers.ec2.errors import describe_error
from pytest_ephemeral.providers.ec2.tables import Ec2Recipe, Ec2Template
from pytest_ephemeral.providers.protocol import Check
from pytest_ephemeral.tables import Recipe, Template

#: The name and id in requests that are only checked.
NAME: Final = "doctor"
#: The resources that are listed to inspect environments and to find leaks.
_LISTS: Final = (
    *("instances", "images", "subnets", "security_groups"),
    *("volumes", "network_interfaces", "snapshots"),
)
_NOT_USED: Final = "not used here"
_NOT_TRIED: Final = "not tried: this endpoint ignores DryRun, and would carry out each request"


def check(templates: Sequence[Template], recipes: Sequence[Recipe]) -> list[Check]:
    """Check the calls that the templates and recipes of a project need.

    Args:
        templates: The templates of the ec2 provider.
        recipes: All recipes of the project.

    Returns:
        One check for each region, template and recipe.
    """
    own = [one for one in templates if isinstance(one, Ec2Template)]
    named = {one.name: one for one in recipes if isinstance(one, Ec2Recipe)}
    baked = [one for one in named.values() if one.base is not None]
    regions = _regions(own, named)
    if unable := [region for region in regions if _ignores_dry_runs(region)]:
        where = ", ".join(str(aws.client("ec2", region).meta.region_name) for region in unable)
        return [Check(f"permissions in {where}", True, _NOT_TRIED)]
    checks = [_check_looks(region) for region in regions]
    checks += [_check_template(one, named.get(one.image or "")) for one in own]
    checks += [_check_recipe(one) for one in baked]
    return checks + [
        Check(what, True, _NOT_USED)
        for what, used in (("launch", own), ("bake", baked))
        if not used
    ]


def _regions(templates: Sequence[Ec2Template], named: Mapping[str, Ec2Recipe]) -> list[str | None]:
    regions = [_region(one, named.get(one.image or "")) for one in templates]
    return list(dict.fromkeys([*regions, *(one.region for one in named.values())]))


def _region(template: Ec2Template, recipe: Ec2Recipe | None) -> str | None:
    return template.region or (recipe.region if recipe else None)


def _ignores_dry_runs(region: str | None) -> bool:
    """Whether an endpoint ignores ``DryRun``, as some emulators do; tried by a read-only call."""
    from botocore.exceptions import ClientError

    try:
        with aws.translate_errors():
            aws.client("ec2", region).describe_instances(DryRun=True)
    except (ClientError, EphemeralError):
        return False
    return True


def _check_looks(region: str | None) -> Check:
    """Check all read-only calls; and terminating an instance, if there is one of ours."""
    client = aws.client("ec2", region)
    name = f"look in {client.meta.region_name}"

    def try_all() -> Iterator[str]:
        for what in _LISTS:
            call = getattr(client, f"describe_{what}")
            yield _try(lambda call=call: call(DryRun=True))  # type: ignore[misc]
        if own := resources.list_instances(client)[:1]:
            yield _try(lambda: client.terminate_instances(InstanceIds=own, DryRun=True))

    return _result(name, try_all)


def _check_template(template: Ec2Template, recipe: Ec2Recipe | None) -> Check:
    """Check the template's first launch request, with all its parameters."""

    def try_all() -> Iterator[str]:
        client = aws.client("ec2", _region(template, recipe))
        request = run_instances.InstanceRequest(
            id=NAME,
            image=_ami(recipe),
            types=template.instance_types(),
            subnets=template.subnets(),
            groups=list(template.security_groups),
            tags={labels.ID: NAME},
            user_data="",
            public=template.address == "public",
            count=template.count,
            more=launch.options(template, {}),
        )
        yield from _try_launch(client, request)
        if template.standby or (template.rollback and template.reset is None):
            yield from _try_renewal(client, request.image, starts=bool(template.standby))

    return _result(f"launch {template.name}", try_all)


def _check_recipe(recipe: Ec2Recipe) -> Check:
    """Check the launch request of a bake's instance, and access to the bucket."""

    def try_all() -> Iterator[str]:
        profile = recipe.instance_profile
        request = run_instances.InstanceRequest(
            id=NAME,
            image=_ami(recipe),
            types=[recipe.instance_type],
            subnets=[] if recipe.subnet is None else [recipe.subnet],
            groups=[],
            tags={labels.ID: NAME},
            user_data="",
            more={} if profile is None else {"IamInstanceProfile": {"Name": profile}},
        )
        yield from _try_launch(aws.client("ec2", recipe.region), request)
        if recipe.bucket is not None:
            transfers.find_bucket(recipe.bucket, recipe.region, f"images.{recipe.name}.bucket")

    return _result(f"bake {recipe.name}", try_all)


def _ami(recipe: Ec2Recipe | None) -> str:
    """The AMI in the request: the recipe's base, as its own image may not be baked yet."""
    if recipe is None or (recipe.reference is None and recipe.base is None):
        return ""
    if recipe.reference is not None:
        return recipe.reference
    return amis.resolve(recipe.base or "", recipe.region)


def _try_launch(client: Any, wanted: run_instances.InstanceRequest) -> Iterator[str]:
    request = next(wanted.requests())
    yield _try(lambda: client.run_instances(**request, DryRun=True))
    if wanted.groups:
        return
    vpc = {}
    if wanted.subnets:
        vpc["VpcId"] = resources.find_vpc(client, wanted.subnets[0])[0]
    tags = [{"Key": labels.ID, "Value": NAME}]
    yield _try(
        lambda: client.create_security_group(
            GroupName=NAME,
            Description=NAME,
            TagSpecifications=[{"ResourceType": "security-group", "Tags": tags}],
            DryRun=True,
            **vpc,
        )
    )


def _try_renewal(client: Any, ami: str, *, starts: bool) -> Iterator[str]:
    """Check replacing a root volume, and starting, on an instance of ours, if there is one."""
    for what in ("instance_types", "replace_root_volume_tasks"):
        call = getattr(client, f"describe_{what}")
        yield _try(lambda call=call: call(DryRun=True))  # type: ignore[misc]
    for id in resources.list_instances(client)[:1]:
        yield _try(
            lambda id=id: client.create_replace_root_volume_task(  # type: ignore[misc]
                InstanceId=id, ImageId=ami, DryRun=True
            )
        )
        if starts:
            yield _try(lambda id=id: client.start_instances(InstanceIds=[id], DryRun=True))  # type: ignore[misc]


def _try(call: Callable[[], object]) -> str:
    """Why EC2 would refuse a call; empty if it would allow it."""
    from botocore.exceptions import ClientError

    try:
        with aws.translate_errors():
            call()
    except ClientError as error:
        return "" if aws.code(error) == "DryRunOperation" else describe_error(error)
    except EphemeralError as error:
        return str(error)
    return ""


def _result(name: str, try_all: Callable[[], Iterator[str]]) -> Check:
    from botocore.exceptions import ClientError

    try:
        refused = list(dict.fromkeys(filter(None, try_all())))
    except EphemeralError as error:
        refused = [str(error)]
    except ClientError as error:
        refused = [describe_error(error)]
    return Check(name, not refused, "; ".join(refused) or "EC2 would allow it (tried by DryRun)")
