"""Make the Compose file of one environment from the user's file.

The compose command resolves the user's file (``config``); the result is changed and passed to
``up``. An override file would not do: docker-compose 1.29 can only add to a list of ports, so two
environments of a file with ``ports: ["8080:8080"]`` could not run side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pytest_ephemeral.errors import ConfigurationError, closest
from pytest_ephemeral.providers.compose.mounts import File, device_of, list_mounts
from pytest_ephemeral.providers.compose.tables import ComposeTemplate
from pytest_ephemeral.providers.docker import containers, masking
from pytest_ephemeral.providers.docker.ports import Published

#: The logging of services without their own: limited, so that logs can't fill the engine's disk.
LOGGING: Final = {
    "driver": containers.LOG_LIMITS["Type"],
    "options": containers.LOG_LIMITS["Config"],
}

#: Keys of services that are removed: environments would share them, or others replace them.
_NOT_KEPT: Final = frozenset({"container_name", "ports", "profiles", "build"})

#: The values of ``network_mode``, with or without a colon and a detail, that name no network or
#: container outside the file: https://docs.docker.com/reference/compose-file/services/#network_mode
#: and https://docs.podman.io/en/latest/markdown/podman-create.1.html#network-mode-net
_NETWORK_MODES: Final = frozenset(
    {"", "bridge", "default", "host", "nat", "none", "pasta", "private", "service", "slirp4netns"}
)

#: A network's option that names its interface on the machine, which only one network can have.
_BRIDGE_NAME: Final = "com.docker.network.bridge.name"


def check_services(file: File, template: ComposeTemplate) -> dict[str, File]:
    """The services that a template brings up, by name.

    Raises:
        ConfigurationError: The template names a service or profile that is not in the file, or a
            service that needs another profile.
    """
    every: dict[str, File] = file.get("services") or {}
    wanted = {
        name: service
        for name, service in every.items()
        if not service.get("profiles") or set(service["profiles"]) & set(template.profiles)
    }
    where = f"templates.{template.name}"
    named = {f"{where}.images.{name}": name for name in template.replaced}
    named |= {
        f"{where}.endpoints.{name}": at.service for name, at in template.service_ports().items()
    }
    named |= {f"{where}.scale.{name}": name for name in template.scale}
    named[f"{where}.service"] = template.service
    for key, name in reversed(named.items()):
        if name not in every:
            raise ConfigurationError(
                f"{key}: there is no service {name!r} in {template.files()[0]}, unless it needs a "
                f"profile that `profiles` lacks.{closest(name, every)}"
            )
        if name not in wanted:
            profiles = ", ".join(every[name]["profiles"])
            raise ConfigurationError(
                f"{key}: the service {name!r} of {template.files()[0]} needs a "
                f'profile: add one of {profiles} to profiles = ["…"]'
            )
    _check_profiles(every.values(), template)
    return wanted


def _check_profiles(services: Iterable[File], template: ComposeTemplate) -> None:
    """Refuse a profile that no service has: the services that were meant would be missing."""
    known = {profile for service in services for profile in service.get("profiles") or ()}
    for profile in template.profiles:
        if profile not in known:
            raise ConfigurationError(
                f"templates.{template.name}.profiles: no service of {template.files()[0]} has the "
                f"profile {profile!r}.{closest(profile, known)}"
            )


def prepare(
    file: File,
    template: ComposeTemplate,
    images: Mapping[str, str],
    *,
    labels: Mapping[str, str],
    secrets: Sequence[str],
    published: Published,
) -> File:
    """Make the file of one environment.

    Its services have the baked images, our labels, and only the endpoints' ports on this machine.
    Its networks and volumes get names of their own, so that environments do not share them.

    Args:
        file: The user's file, as resolved by ``config``.
        template: The template.
        images: The ids of the baked images, by name.
        labels: The labels of all resources.
        secrets: Values to mask in the logs.
        published: The published ports of the endpoints.

    Raises:
        ConfigurationError: The file can't be used with this template.
    """
    services = {}
    for name, service in check_services(file, template).items():
        _check_mounts(template, name, service, file.get("volumes") or {})
        _check_external(template, name, service, file)
        services[name] = {
            **_own_service(service, labels, secrets),
            "image": _image(name, service, template, images),
            **_ports(template, name, service, published),
        }
    networks = {"default": None, **(file.get("networks") or {})}
    for name, network in networks.items():
        networks[name] = _own_network(template, name, network, services, labels)
    volumes = {name: _own(one, labels) for name, one in (file.get("volumes") or {}).items()}
    rest = {key: value for key, value in file.items() if key != "name"}
    return {**rest, "services": services, "networks": networks, "volumes": volumes}


def _own_service(service: File, labels: Mapping[str, str], secrets: Sequence[str]) -> File:
    """A service without the keys that are not kept, with our labels and network aliases."""
    return {
        "logging": LOGGING,
        **{key: value for key, value in service.items() if key not in _NOT_KEPT},
        "labels": {**_mapping(service.get("labels")), **labels, **_masking(service, secrets)},
        **_networks(service),
    }


def replicas(file: File, template: ComposeTemplate, name: str) -> int:
    """The number of containers of a service."""
    service = (file.get("services") or {}).get(name) or {}
    asked = service.get("scale") or (service.get("deploy") or {}).get("replicas")
    return template.scale.get(name, 1 if asked is None else int(asked))


def _check_mounts(
    template: ComposeTemplate, name: str, service: File, volumes: Mapping[str, File | None]
) -> None:
    """Refuse mounts of this machine's files over a baked image: they are not what was baked.

    Args:
        template: The template.
        name: The service's name.
        service: The service in the file.
        volumes: The file's volumes, which may be folders of this machine, too.

    Raises:
        ConfigurationError: There is such a mount; the message names the first.
    """
    if template.allow_mounts or name not in template.replaced:
        return
    for mount in list_mounts(service):
        if source := mount.source if mount.is_folder else device_of(volumes.get(mount.source)):
            raise ConfigurationError(
                f"templates.{template.name}: the service {name!r} runs the baked image "
                f"{template.replaced[name]!r}, and {template.files()[0]} mounts {source} of this "
                f"machine over its {mount.target}: tests would run other bytes than were baked. "
                "Remove the mount, or set allow-mounts = true"
            )


def _check_external(template: ComposeTemplate, name: str, service: File, file: File) -> None:
    """Refuse networks, volumes and containers that all environments of the file would share.

    Raises:
        ConfigurationError: The service uses one; the message names it.
    """
    if not template.allow_external and (shared := _foreign_part(service)):
        raise ConfigurationError(
            f"templates.{template.name}: the service {name!r} has {shared} in "
            f"{template.files()[0]}, which is not the environment's: all environments of it would "
            "share that one. Use a service or a network of the file, or set allow-external = true"
        )
    joined = [] if service.get("network_mode") else list(service.get("networks") or ["default"])
    used = [("networks", one) for one in joined]
    used += [("volumes", mount.source) for mount in list_mounts(service)]
    for kind, one in used:
        if template.allow_external or not ((file.get(kind) or {}).get(one) or {}).get("external"):
            continue
        what, why = {
            "networks": ("network", "find each other's services by the same names on it"),
            "volumes": ("volume", "read and write the same data"),
        }[kind]
        raise ConfigurationError(
            f"templates.{template.name}: the service {name!r} uses the {what} {one!r}, which is "
            f"external in {template.files()[0]}: two environments of it would {why}. Remove "
            "external, so that each has its own, or set allow-external = true"
        )


def _foreign_part(service: File) -> str:
    """The first key by which a service uses a container or a network outside the file, or empty.

    The keys: https://docs.docker.com/reference/compose-file/services/
    """
    mode = str(service.get("network_mode") or "")
    values = [("external_links", one) for one in service.get("external_links") or ()]
    if mode.partition(":")[0] not in _NETWORK_MODES:
        values.append(("network_mode", mode))
    may_be = [(key, service.get(key)) for key in ("ipc", "pid")]
    may_be += [("volumes_from", one) for one in service.get("volumes_from") or ()]
    values += [(key, one) for key, one in may_be if str(one).startswith("container:")]
    return next((f"{key}: {value}" for key, value in values), "")


def _networks(service: File) -> dict[str, Any]:
    """A service's networks, with its ``container_name`` as an alias."""
    alias = service.get("container_name")
    if not alias or service.get("network_mode"):
        return {}
    networks = service.get("networks") or {"default": None}
    named = dict.fromkeys(networks) if isinstance(networks, list) else dict(networks)
    for name, options in named.items():
        aliases = (options or {}).get("aliases") or []
        named[name] = {**(options or {}), "aliases": [*aliases, alias]}
    return {"networks": named}


def _ports(
    template: ComposeTemplate, name: str, service: File, published: Published
) -> dict[str, Sequence[str]]:
    """The published ports of a service; on the host network, none need to be published."""
    mine = sorted(
        endpoint for endpoint, at in template.service_ports().items() if at.service == name
    )
    mode = str(service.get("network_mode") or "")
    if mode in {"", "bridge", "default"}:
        return {"ports": [published.map_port(one) for one in mine]}
    if mine and mode != "host":
        whose = mode.partition(":")[2]
        instead = f": that is the service {whose!r}, which `endpoints` must name" if whose else ""
        raise ConfigurationError(
            f"templates.{template.name}: the service {name!r} of {template.files()[0]} has "
            f"network_mode: {mode}, and so has no ports of its own{instead}"
        )
    return {}


def _image(name: str, service: File, template: ComposeTemplate, images: Mapping[str, str]) -> str:
    """The image of a service: the baked one, or the file's."""
    if name in template.replaced:
        return images[template.replaced[name]]
    if other := next((key for key in ("provider", "models") if service.get(key)), ""):
        raise ConfigurationError(
            f"templates.{template.name}: the service {name!r} of {template.files()[0]} has "
            f"{other}, which Compose creates by another program: it would outlive the "
            "environment. Use a service with an image instead"
        )
    if "build" in service or not service.get("image"):
        raise ConfigurationError(
            f"templates.{template.name}: the service {name!r} of {template.files()[0]} has build: "
            "images are baked once, for every stage. Bake it, [images.NAME] with provider = "
            f'"docker" and context, and name it: images = {{ {name} = "NAME" }}'
        )
    return str(service["image"])


def _masking(service: File, secrets: Sequence[str]) -> dict[str, str]:
    """The labels for masking a service's logs; see ``masking``."""
    variables = {
        name: "" if value is None else str(value).replace("$$", "$")
        for name, value in _mapping(service.get("environment")).items()
    }
    return masking.labels_for(variables, secrets)


def _own(thing: File | None, labels: Mapping[str, str]) -> File:
    """A network or volume without its fixed name, with our labels; external ones are unchanged."""
    thing = dict(thing or {})
    if thing.get("external"):
        return thing
    thing.pop("name", None)
    return {**thing, "labels": {**_mapping(thing.get("labels")), **labels}}


def _own_network(
    template: ComposeTemplate,
    name: str,
    network: File | None,
    services: Mapping[str, File],
    labels: Mapping[str, str],
) -> File:
    """A network of this environment, without a fixed subnet.

    Two environments of a file can't have the same subnet, so it is removed.

    Raises:
        ConfigurationError: A service has a fixed address in the subnet.
    """
    own = _own(network, labels)
    if own.get("external"):
        return own
    options = {**(own.get("driver_opts") or {})}
    if options.pop(_BRIDGE_NAME, None):
        own["driver_opts"] = options
    if "subnet" not in str(own.get("ipam") or ""):
        return own
    for service, described in services.items():
        options = _mapping(described.get("networks")).get(name) or {}
        if address := options.get("ipv4_address") or options.get("ipv6_address"):
            raise ConfigurationError(
                f"templates.{template.name}: the network {name!r} of {template.files()[0]} has a "
                f"fixed subnet, and the service {service!r} the address {address} in it: two "
                "environments of it can't run side by side. Remove both, and use the service's name"
            )
    return {key: value for key, value in own.items() if key != "ipam"}


def _mapping(value: Any) -> dict[str, Any]:
    """A mapping from a value that may be a mapping or a list of ``name=value``."""
    if isinstance(value, list):
        pairs = [str(one).partition("=") for one in value]
        return {name: text if equals else None for name, equals, text in pairs}
    return dict(value or {})
