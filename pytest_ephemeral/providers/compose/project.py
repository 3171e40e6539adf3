"""What a Compose file means, made into what one environment brings up.

Not an override file beside the user's: docker-compose 1.29 can only add to a list of ports, so
that two environments of one file with ``ports: ["8080:8080"]`` would never run side by side. The
command itself says what the file means (``config``); that is changed, whole, and handed back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pytest_ephemeral.errors import ConfigurationError, closest
from pytest_ephemeral.providers.compose.tables import ComposeTemplate
from pytest_ephemeral.providers.docker import containers, masking
from pytest_ephemeral.providers.docker.ports import Published

File = dict[str, Any]

#: For services that say nothing of it: what they print is not to fill the engine's disk.
LOGGING: Final = {
    "driver": containers.LOG_LIMITS["Type"],
    "options": containers.LOG_LIMITS["Config"],
}

#: What would be shared with other environments, or is decided already.
_NOT_KEPT: Final = frozenset({"container_name", "ports", "profiles", "build"})

#: An option by which a network has the same interface of the machine in every environment.
_BRIDGE_NAME: Final = "com.docker.network.bridge.name"


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
                f"{key}: there is no service {name!r} in {template.files()[0]}."
                f"{closest(name, every)}"
            )
        if name not in wanted:
            profiles = ", ".join(every[name]["profiles"])
            raise ConfigurationError(
                f"{key}: the service {name!r} of {template.files()[0]} needs a "
                f'profile: add one of {profiles} to profiles = ["…"]'
            )
    return wanted


def prepare(
    file: File,
    template: ComposeTemplate,
    images: Mapping[str, str],
    *,
    labels: Mapping[str, str],
    secrets: Sequence[str],
    published: Published,
) -> File:
    """The file of one environment.

    Its services have the baked images, our labels, and no port on this machine but those of the
    endpoints. What would be shared with other environments by its name gets one of its own.

    Args:
        file: What the user's means.
        template: What is asked for.
        images: What the engine calls the baked images, by name.
        labels: The labels.
        secrets: Values to be masked in the logs.
        published: Where the endpoints' ports are published.

    Raises:
        ConfigurationError: It can't be right.
    """
    services = {}
    for name, service in check_services(file, template).items():
        _check_service(template, name, service, file)
        fixed = replicas(file, template, name) == 1
        services[name] = {
            **_own_service(service, labels, secrets),
            "image": _image(name, service, template, images),
            **_ports(template, name, service, published, fixed=fixed),
        }
    networks = {"default": None, **(file.get("networks") or {})}
    for name, network in networks.items():
        networks[name] = _own_network(template, name, network, services, labels)
    volumes = {name: _own(one, labels) for name, one in (file.get("volumes") or {}).items()}
    rest = {key: value for key, value in file.items() if key != "name"}
    return {**rest, "services": services, "networks": networks, "volumes": volumes}


def _own_service(service: File, labels: Mapping[str, str], secrets: Sequence[str]) -> File:
    """What a service keeps, with our labels and the names that it is found by."""
    return {
        "logging": LOGGING,
        **{key: value for key, value in service.items() if key not in _NOT_KEPT},
        "labels": {**_mapping(service.get("labels")), **labels, **_masking(service, secrets)},
        **_networks(service),
    }


def replicas(file: File, template: ComposeTemplate, name: str) -> int:
    """How many containers a service has."""
    service = (file.get("services") or {}).get(name) or {}
    asked = service.get("scale") or (service.get("deploy") or {}).get("replicas")
    return template.scale.get(name, 1 if asked is None else int(asked))


def list_exposed(service: File) -> list[str]:
    """The ports that a file says a service listens on, ranges as they are written."""
    return [port for port, _ in _exposed(service)]


def is_udp(service: File, port: int) -> bool:
    """Whether a file says of a port that it is one of udp, and no one of tcp too."""
    return {protocol for one, protocol in _exposed(service) if one == str(port)} == {"udp"}


def _exposed(service: File) -> Iterator[tuple[str, str]]:
    for port in service.get("expose") or ():
        number, _, protocol = str(port).partition("/")
        yield number, protocol or "tcp"
    for port in service.get("ports") or ():
        if isinstance(port, dict):
            yield str(port["target"]), port.get("protocol") or "tcp"
        else:
            number, _, protocol = str(port).rpartition(":")[2].partition("/")
            yield number, protocol or "tcp"


def _check_service(template: ComposeTemplate, name: str, service: File, file: File) -> None:
    _check_mounts(template, name, service, file.get("volumes") or {})
    _check_external(template, name, service, file)


def _check_mounts(
    template: ComposeTemplate, name: str, service: File, volumes: Mapping[str, File | None]
) -> None:
    """Refuse folders and files of this machine over a baked image: it would be other bytes.

    Args:
        template: What is asked for.
        name: The service's.
        service: What the file says of it.
        volumes: The file's volumes, which may stand for folders of this machine too.

    Raises:
        ConfigurationError: There are some; names the first.
    """
    if template.allow_mounts or name not in template.replaced:
        return
    for named, target in _mounts(service):
        if source := named if _is_path(named) else device_of(volumes.get(named)):
            raise ConfigurationError(
                f"templates.{template.name}: the service {name!r} runs the baked image "
                f"{template.replaced[name]!r}, and {template.files()[0]} mounts {source} of this "
                f"machine over its {target}: tests would run other bytes than were baked. "
                "Remove the mount, or set allow-mounts = true"
            )


def _mounts(service: File) -> Iterator[tuple[str, str]]:
    """What a service mounts, a path or a volume's name, and where."""
    for volume in service.get("volumes") or ():
        if isinstance(volume, dict):
            yield str(volume.get("source") or ""), str(volume.get("target", ""))
        elif ":" in str(volume):
            source, _, rest = str(volume).partition(":")
            yield source, rest.partition(":")[0]


def device_of(volume: File | None) -> str:
    """The folder, here or on a file server, that a volume stands for; empty if it is its own."""
    options = (volume or {}).get("driver_opts") or {}
    return "" if options.get("type") == "tmpfs" else str(options.get("device") or "")


def _check_external(template: ComposeTemplate, name: str, service: File, file: File) -> None:
    """Refuse networks, volumes and containers that all environments of the file would share.

    Raises:
        ConfigurationError: It uses one; names it, and says what to do.
    """
    if not template.allow_external and (shared := _foreign_container(service)):
        raise ConfigurationError(
            f"templates.{template.name}: the service {name!r} has {shared} in "
            f"{template.files()[0]}, a container that is not the environment's: all environments "
            "of it would share that one. Use a service of the file, or set allow-external = true"
        )
    joined = [] if service.get("network_mode") else list(service.get("networks") or ["default"])
    used = [("networks", one) for one in joined]
    used += [("volumes", source) for source, _ in _mounts(service)]
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


def _foreign_container(service: File) -> str:
    """The first key by which a service takes part in a container from elsewhere; empty if none.

    See https://docs.docker.com/reference/compose-file/services/ for what these keys take.
    """
    values = [(key, str(service.get(key) or "")) for key in ("network_mode", "ipc", "pid")]
    values += [("volumes_from", str(one)) for one in service.get("volumes_from") or ()]
    values += [
        ("external_links", f"container:{one}") for one in service.get("external_links") or ()
    ]
    found = (f"{key}: {value}" for key, value in values if value.startswith("container:"))
    return next(found, "")


def _is_path(source: str) -> bool:
    return source.startswith(("/", ".", "~"))


def _networks(service: File) -> dict[str, Any]:
    """A service's networks, on which its ``container_name`` stays a name that it is found by."""
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
    template: ComposeTemplate, name: str, service: File, published: Published, *, fixed: bool
) -> dict[str, Sequence[str]]:
    """Its ports on this machine; a service on the machine's own network has them there already."""
    mine = sorted(endpoint for endpoint, at in template.places().items() if at.service == name)
    mode = str(service.get("network_mode") or "")
    if mode in {"", "bridge", "default"}:
        if not fixed:  # each of several needs another
            keys = dict.fromkeys(published.key(one) for one in mine)
            return {"ports": [f"{published.address}::{key}" for key in keys]}
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
    """The image that a service runs: the baked one, or the file's."""
    if name in template.replaced:
        return images[template.replaced[name]]
    if "build" in service or not service.get("image"):
        raise ConfigurationError(
            f"templates.{template.name}: the service {name!r} of {template.files()[0]} has build: "
            "images are baked once, for every stage. Bake it, [images.NAME] with provider = "
            f'"docker" and context, and name it: images = {{ {name} = "NAME" }}'
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


def _own_network(
    template: ComposeTemplate,
    name: str,
    network: File | None,
    services: Mapping[str, File],
    labels: Mapping[str, str],
) -> File:
    """A network of this environment's; with addresses that the engine chooses.

    Two environments of one file could not both have its subnet. It is left out, unless a service
    has an address in it that others may know.
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
    """What may be written as a table, or as a list of ``name=value``."""
    if isinstance(value, list):
        pairs = [str(one).partition("=") for one in value]
        return {name: text if equals else None for name, equals, text in pairs}
    return dict(value or {})
