"""The docker provider: an environment is a container on a network of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, Self

import msgspec

from pytest_ephemeral.errors import EphemeralError, LaunchError
from pytest_ephemeral.models import Endpoint, Environment, Image, endpoints_at
from pytest_ephemeral.providers.docker import (
    containers,
    endpoint,
    errors,
    identity,
    masking,
    quarantine,
    resources,
)
from pytest_ephemeral.providers.docker.baking import DockerBaker
from pytest_ephemeral.providers.docker.doctor import engine_check
from pytest_ephemeral.providers.docker.engine import Engine, EngineError, NoEngineError
from pytest_ephemeral.providers.docker.environments import (
    APP,
    MAIN,
    SERVING,
    ContainerEnvironments,
    begin_launch,
    naming_failures,
)
from pytest_ephemeral.providers.docker.resources import CONTAINER, name_of
from pytest_ephemeral.providers.docker.tables import (
    DockerRecipe,
    DockerTemplate,
    bytes_of,
    volume_of,
)
from pytest_ephemeral.providers.protocol import Check, Order, Owned, Status
from pytest_ephemeral.tables import Recipe, Template

LOOPBACK: Final = "127.0.0.1"

#: Hosts by which a tcp engine of this machine is addressed.
_HERE: Final = frozenset({"", LOOPBACK, "localhost", "::1"})
_ANYWHERE: Final = "0.0.0.0"  # noqa: S104 - a remote engine's ports are reached from here


class DockerProvider(ContainerEnvironments, DockerBaker):
    """Runs environments as containers; see ``Provider`` for what is promised."""

    name: ClassVar[str] = "docker"
    template_type: ClassVar[type[Template]] = DockerTemplate
    recipe_type: ClassVar[type[Recipe] | None] = DockerRecipe

    def doctor(self) -> Sequence[Check]:
        """Whether an engine answers."""
        return [engine_check()]

    def launch(self, order: Order) -> Environment:
        """Create a network and a container on it, and start it."""
        environment, template, image = order.environment, order.template, order.image
        if not isinstance(template, DockerTemplate) or image is None:
            raise LaunchError(
                f"{environment.id}: template {template.name!r} is not a container template"
            )
        _check_exposed(template, image)
        engine = endpoint.find()
        try:
            return _launch(engine, order, template, image)
        except NoEngineError:
            raise
        except (EngineError, TimeoutError) as error:
            note = containers.describe_architecture(engine, {"Image": image.digest})
            raise LaunchError(
                f"{environment.id} could not be launched: {errors.describe_error(error)}{note}"
            ) from error

    def status(self, environment: Environment) -> Status:
        """How its container is."""
        return super().status(environment) if _is_odd(environment) else Status("running")

    def owned(self) -> Iterator[Owned]:
        """All environments, and what bakes have left."""
        seen = set()
        for found in super().owned():
            seen.add(found.id)
            yield found
        yield from (one for one in quarantine.list_owned(endpoint.find()) if one.id not in seen)

    def sweep(self, owned: Owned) -> None:
        """Remove all of one; of a bake, also the image that was not verified."""
        super().sweep(owned)
        with naming_failures(owned):
            quarantine.sweep(endpoint.find(), owned.id)


def _launch(engine: Engine, order: Order, template: DockerTemplate, image: Image) -> Environment:
    order = begin_launch(order, engine)
    environment = order.environment
    name, labels = name_of(environment.id), resources.labels_for(environment, DockerProvider.name)
    body = _container(order, template, image, publish_address(engine))
    body["Labels"] |= labels
    with _Network(engine, name, labels) as network:
        for mount in body["HostConfig"]["Mounts"]:
            _make_volume(engine, mount, labels)
        made = network.joined_by(
            lambda: engine.call("POST", "/containers/create", query={"name": name}, body=body)
        )
    if template.network is not None:
        joined = f"/networks/{template.network}/connect"
        engine.call("POST", joined, body={"Container": made["Id"]})
    engine.call("POST", f"/containers/{made['Id']}/start")
    found = containers.inspect(engine, made["Id"])
    endpoints = find_endpoints(engine, found, template.endpoints())
    return msgspec.structs.replace(
        environment,
        endpoints=endpoints,
        url=next((endpoint.url for endpoint in endpoints.values()), ""),
        handle={
            **environment.handle,
            CONTAINER: made["Id"],
            MAIN: APP,
            SERVING: APP,
        },
    )


def _is_odd(environment: Environment) -> bool:
    """Whether there is more to say of its container than that it runs."""
    if CONTAINER not in environment.handle:
        return True
    try:
        engine = identity.engine_of(environment.handle)
        state = containers.inspect(engine, environment.handle[CONTAINER])["State"]
    except (EphemeralError, TimeoutError):
        return True
    health = (state.get("Health") or {}).get("Status")
    return state["Status"] != "running" or health == "unhealthy"


class _Network:
    """An environment's network, created while its container is.

    A bridge takes an engine 0.1 s, for its rules in the kernel's packet filter; Docker asks for it
    only when the container starts, Podman when it is created.
    """

    def __init__(self, engine: Engine, name: str, labels: Mapping[str, str]) -> None:
        self.id = ""
        self._engine = engine
        self._body = {"Name": name, "Labels": dict(labels)}
        self._error: EphemeralError | TimeoutError | None = None
        self._thread = threading.Thread(target=self._create, name=f"network {name}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._wait()

    def joined_by(self, create: Callable[[], Any]) -> Any:
        """Create a container, now or when the network is there."""
        try:
            return create()
        except EngineError:
            self._wait()
            return create()

    def _wait(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _create(self) -> None:
        try:
            self.id = self._engine.call("POST", "/networks/create", body=self._body)["Id"]
        except (EphemeralError, TimeoutError) as error:
            self._error = error


def _container(
    order: Order, template: DockerTemplate, image: Image, address: str
) -> dict[str, Any]:
    """The request for a container, as /containers/create takes it."""
    name = name_of(order.environment.id)
    ports = [f"{port}/tcp" for port in template.endpoints().values()]
    command = template.command
    if isinstance(command, str):
        command = ["/bin/sh", "-c", command]
    host: dict[str, Any] = {
        "NetworkMode": name,
        "PortBindings": {port: [{"HostIp": address, "HostPort": ""}] for port in ports},
        "Mounts": [_mount(volume, name) for volume in template.volumes],
        "Tmpfs": dict(folder.partition(":")[::2] for folder in template.tmpfs),
        "LogConfig": containers.LOG_LIMITS,
    }
    if template.memory is not None:
        # Memory and swap together: what does not fit is killed, and does not crawl.
        host["Memory"] = host["MemorySwap"] = bytes_of(template.memory)
    if template.cpus is not None:
        host["NanoCpus"] = round(template.cpus * 10**9)
    return {
        "Image": image.digest,
        "Cmd": command,
        "Env": [f"{key}={value}" for key, value in order.variables.items()],
        "Labels": masking.labels_for(order.variables, order.secrets),
        "ExposedPorts": {port: {} for port in ports},
        "HostConfig": host,
    }


def _mount(volume: str, prefix: str) -> dict[str, Any]:
    """A volume; one without a name is the container's own, and removed with it."""
    name, path = volume_of(volume)
    mount = {"Type": "volume", "Target": path}
    return {**mount, "Source": f"{prefix}-{name}"} if name else mount


def _make_volume(engine: Engine, mount: Mapping[str, Any], labels: Mapping[str, str]) -> None:
    """Make a volume that has a name, labelled: Podman labels none that a container brings along."""
    if name := mount.get("Source"):
        engine.call("POST", "/volumes/create", body={"Name": name, "Labels": dict(labels)})


def publish_address(engine: Engine) -> str:
    """The address its ports are published on: this machine's loopback, or, on another, all."""
    return LOOPBACK if engine.address.host in _HERE else _ANYWHERE


def find_endpoints(
    engine: Engine, found: Mapping[str, Any], ports: Mapping[str, int]
) -> dict[str, Endpoint]:
    """Where its ports are reached from here, by the ports that the engine chose.

    One that has stopped already has none any more; whoever looks at it will see that it has.

    Args:
        engine: Where it runs.
        found: The container, as ``inspect`` gives it.
        ports: The ports inside it, by endpoint.
    """
    host = LOOPBACK if engine.address.host in _HERE else engine.address.host
    bindings = found["NetworkSettings"]["Ports"]
    reached = {}
    for name, inside in endpoints_at(host, ports).items():
        chosen = bindings.get(f"{inside.port}/tcp") or [{"HostPort": inside.port}]
        reached[name] = msgspec.structs.replace(inside, port=int(chosen[0]["HostPort"]))
    return reached


def _check_exposed(template: DockerTemplate, image: Image) -> None:
    """Refuse a port that the image does not expose, if it exposes any: nobody would listen."""
    exposed = image.handle.get("exposed", "").split()
    for name, port in template.endpoints().items():
        if exposed and str(port) not in exposed:
            raise LaunchError(describe_unexposed(template.name, name, port, image.name, exposed))


def describe_unexposed(
    template: str, name: str, port: int, what: str, exposed: Sequence[str]
) -> str:
    """The message for a port that is not exposed."""
    return (
        f"templates.{template}: port {port} ({name}) is not exposed by {what!r}, which exposes "
        f"{', '.join(exposed)}: ask for one of these, or add `EXPOSE {port}` to its Dockerfile "
        "if the application does listen there"
    )
