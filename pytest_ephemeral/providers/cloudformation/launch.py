"""From an order to a stack that is complete, and its endpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from pytest_ephemeral import aws, interpolation
from pytest_ephemeral.errors import ConfigurationError, LaunchError, closest
from pytest_ephemeral.masking import mask
from pytest_ephemeral.models import Endpoint, Environment, Image
from pytest_ephemeral.providers.cloudformation import instances, packaging, stacks, upload
from pytest_ephemeral.providers.cloudformation.tables import (
    StackTemplate,
    outputs_in,
    with_outputs,
)
from pytest_ephemeral.providers.ec2 import amis, identity
from pytest_ephemeral.providers.protocol import Order

#: In a handle: the stack's region, and its id.
REGION: Final = "region"
STACK: Final = "stack"
#: In a handle: the bucket of the stack's files, if it has any.
BUCKET: Final = "bucket"


def launch(order: Order) -> Environment:
    """Create a stack, wait until it is complete, and get its endpoints from its outputs.

    Raises:
        ConfigurationError: The template asks for what is not there.
        LaunchError: The stack could not be created, or has not the outputs that it should.
    """
    template, environment = order.template, order.environment
    if not isinstance(template, StackTemplate):
        raise LaunchError(
            f"{environment.id}: template {template.name!r} is not a CloudFormation template"
        )
    client = aws.client("cloudformation", template.region)
    region = str(client.meta.region_name)
    handle = {REGION: region, **identity.account_of(region)}

    def note(**facts: str) -> Environment:
        handle.update(facts)
        noted = msgspec.structs.replace(environment, handle=dict(handle))
        order.journal(noted)
        return noted

    source = _source(order, template, lambda bucket: note(**{BUCKET: bucket}))
    images = _images_in(region, order.images)
    summary = client.get_template_summary(**source.arguments)
    parameters = _parameters(order, template, summary, images)
    note(**stacks.launch_facts(packaging.read(order.root / template.file, template.name), summary))
    stack = stacks.create(client, environment, template, source, parameters)
    environment = note(**{STACK: stack})
    try:
        found = stacks.wait_until_complete(client, stack)
    except LaunchError as error:
        reason = mask(str(error), order.secrets)
        raise LaunchError(f"{environment.id} could not be launched: {reason}") from None
    instances.look(environment)
    endpoints = _endpoints(template, found)
    url = next(iter(endpoints.values())).url
    return msgspec.structs.replace(environment, endpoints=endpoints, url=url)


def _source(
    order: Order, template: StackTemplate, journal: Callable[[str], object]
) -> upload.Source:
    """The template for CloudFormation; files are uploaded to S3, after the bucket is journaled."""
    if not upload.check(template, order.root):
        file = order.root / template.file
        text = packaging.read(file, f"templates.{template.name}.file")
        return upload.Source({"TemplateBody": text})
    client, place = upload.find_folder(template, order.environment.id)
    journal(place.bucket)
    return upload.send(template, order.root, client, place)


def _images_in(region: str, images: Mapping[str, Image]) -> dict[str, Image]:
    """The images, each with the id of its AMI (or of the AMI's copy) in the stack's region."""
    return {
        name: msgspec.structs.replace(
            image, reference=amis.find_in_region(aws.client("ec2", region), image, region)
        )
        if image.provider == "ec2"
        else image
        for name, image in images.items()
    }


def _parameters(
    order: Order,
    template: StackTemplate,
    summary: Mapping[str, Any],
    images: Mapping[str, Image],
) -> dict[str, str]:
    """The stack's parameters: ``parameters`` and ``env`` of the template, filled in."""
    where = f"templates.{template.name}.parameters"
    filled = interpolation.fill(template.parameters, environ=os.environ, images=images, where=where)
    _check_capabilities(template, summary)
    declared = {one["ParameterKey"] for one in summary.get("Parameters", ())}
    given = {**order.variables, **filled.variables}
    for name in given:
        if name not in declared:
            raise ConfigurationError(
                f"{where}: {template.file} has no parameter {name!r}.{closest(name, declared)}"
            )
    return given


def _check_capabilities(template: StackTemplate, summary: Mapping[str, Any]) -> None:
    """Check that the template has all capabilities that CloudFormation requires."""
    given = set(template.capabilities)
    if "CAPABILITY_NAMED_IAM" in given:
        given.add("CAPABILITY_IAM")
    missing = [one for one in summary.get("Capabilities", ()) if one not in given]
    if missing:
        reason = summary.get("CapabilitiesReason") or "its resources or transforms require them"
        names = ", ".join(f'"{one}"' for one in [*template.capabilities, *missing])
        raise ConfigurationError(
            f"templates.{template.name}: {template.file} needs {', '.join(missing)}: {reason}. "
            f"Write: capabilities = [{names}]"
        )


def _endpoints(template: StackTemplate, stack: Mapping[str, Any]) -> dict[str, Endpoint]:
    outputs = {one["OutputKey"]: one["OutputValue"] for one in stack.get("Outputs", ())}
    return {name: _endpoint(template, name, url, outputs) for name, url in template.urls().items()}


def _endpoint(template: StackTemplate, name: str, url: str, outputs: dict[str, str]) -> Endpoint:
    for output in outputs_in(url):
        if output not in outputs:
            raise LaunchError(
                f"templates.{template.name}: {template.file} has no output {output!r}."
                f"{closest(output, outputs)}"
            )
    found = urlsplit(with_outputs(url, outputs))
    scheme = found.scheme or "http"
    if not found.hostname:
        raise LaunchError(f"templates.{template.name}: {found.geturl()!r} of {name} is not a URL")
    port = found.port or (443 if scheme == "https" else 80)
    return Endpoint(host=found.hostname, port=port, scheme=scheme)
