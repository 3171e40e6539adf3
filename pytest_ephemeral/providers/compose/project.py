"""What a Compose file means, made into what one environment brings up.

Not an override file beside the user's: docker-compose 1.29 can only add to a list of ports, so
that two environments of one file with ``ports: ["8080:8080"]`` would never run side by side. The
command itself says what the file means (``config``); that is changed, whole, and handed back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pytest_ephemeral.errors import ConfigurationError, closest
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers.compose.tables import ComposeTemplate
from pytest_ephemeral.providers.docker import containers, masking

File = dict[str, Any]

#: For services that say nothing of it: what they print is not to fill the engine's disk.
LOGGING: Final = {
    "driver": containers.LOG_LIMITS["Type"],
    "options": containers.LOG_LIMITS["Config"],
}

#: What would be shared with other environments, or is decided already.
_NOT_KEPT: Final = frozenset({"container_name", "ports", "profiles", "build"})


def check_services(file: File, template: ComposeTemplate) -> dict[str, File]:
    """The services that the template brings up.

    Raises:
        ConfigurationError: One that it names is not in the file, or not in its profiles.
    """
    every: dict[str, File] = file.get("services") or {}
    wanted = {
        name: service
        for name, service in every.items()
        if not service.get("profiles") or set(service["profiles"]) & set(template.profiles)
    }
    where = f"templates.{template.name}"
    named = {f"{where}.images.{name}": name for name in template.replaced}
    named |= {f"{where}.endpoints.{name}": at.service for name, at in template.places().items()}
    named[f"{where}.service"] = template.service
    for key, name in reversed(named.items()):
        if name not in every:
            raise ConfigurationError(
                f"{key}: there is no service {name!r} in {template.file}.{closest(name, every)}"
            )
        if name not in wanted:
            profiles = ", ".join(every[name]["profiles"])
            raise ConfigurationError(
                f"{key}: the service {name!r} of {template.file} is only there with a profile: "
                f'add one of {profiles} to profiles = ["…"]'
            )
    return wanted


def prepare(
    file: File,
    template: ComposeTemplate,
    images: Mapping[str, Image],
    *,
    labels: Mapping[str, str],
    secrets: Sequence[str],
    address: str,
) -> File:
    """The file of one environment.

    Its services have the baked images, our labels, and no port on this machine but those of the
    endpoints. What would be shared with other environments by its name gets one of its own.

    Args:
        file: What the user's means.
        template: What is asked for.
        images: The baked images by name.
        labels: The labels.
        secrets: Values to be masked in the logs.
        address: Where ports are published.

    Raises:
        ConfigurationError: It can't be right.
    """
    services = {}
    for name, service in check_services(file, template).items():
        ports = sorted({at.port for at in template.places().values() if at.service == name})
        services[name] = {
            "logging": LOGGING,
            **{key: value for key, value in service.items() if key not in _NOT_KEPT},
            "image": _image(name, service, template, images),
            "labels": {**_mapping(service.get("labels")), **labels, **_masking(service, secrets)},
            **_published(template, name, service, [f"{address}::{port}" for port in ports]),
        }
    networks = {"default": None, **(file.get("networks") or {})}
    volumes = file.get("volumes") or {}
    rest = {key: value for key, value in file.items() if key != "name"}
    return {
        **rest,
        "services": services,
        "networks": {name: _own(network, labels) for name, network in networks.items()},
        "volumes": {name: _own(volume, labels) for name, volume in volumes.items()},
    }


def list_exposed(service: File) -> list[str]:
    """The ports that a file says a service listens on, ranges as they are written."""
    found = [str(port) for port in service.get("expose") or ()]
    for port in service.get("ports") or ():
        target = port["target"] if isinstance(port, dict) else port
        found += [str(target).rpartition(":")[2]]
    return [port.partition("/")[0] for port in found]


def _published(
    template: ComposeTemplate, name: str, service: File, ports: Sequence[str]
) -> dict[str, Sequence[str]]:
    """Its ports on this machine; a service on the machine's own network has them there already."""
    mode = str(service.get("network_mode") or "")
    if mode in {"", "bridge", "default"}:
        return {"ports": ports}
    if ports and mode != "host":
        whose = mode.partition(":")[2]
        instead = f": that is the service {whose!r}, which endpoints have to name" if whose else ""
        raise ConfigurationError(
            f"templates.{template.name}: the service {name!r} of {template.file} has network_mode: "
            f"{mode}, and so no ports of its own{instead}"
        )
    return {}


def _image(name: str, service: File, template: ComposeTemplate, images: Mapping[str, Image]) -> str:
    """The image that a service runs: the baked one, or the file's."""
    if name in template.replaced:
        return images[template.replaced[name]].digest
    if "build" in service or not service.get("image"):
        raise ConfigurationError(
            f"templates.{template.name}: the service {name!r} of {template.file} has build: "
            "images are baked once, for every stage. Bake it, [images.NAME] with provider = "
            f'"docker" and context, and say so: images = {{ {name} = "NAME" }}'
        )
    return str(service["image"])


def _masking(service: File, secrets: Sequence[str]) -> dict[str, str]:
    """The labels by which a service's logs are masked."""
    variables = {
        name: "" if value is None else str(value).replace("$$", "$")
        for name, value in _mapping(service.get("environment")).items()
    }
    return masking.labels_for(variables, secrets)


def _own(thing: File | None, labels: Mapping[str, str]) -> File:
    """A network or volume that is this environment's alone, unless it is there already."""
    thing = dict(thing or {})
    external = thing.get("external")
    if external:
        return thing
    thing.pop("name", None)
    return {**thing, "labels": {**_mapping(thing.get("labels")), **labels}}


def _mapping(value: Any) -> dict[str, Any]:
    """What may be written as a table, or as a list of ``name=value``."""
    if isinstance(value, list):
        pairs = (str(one).partition("=") for one in value)
        return {name: text if equals else None for name, equals, text in pairs}
    return dict(value or {})
