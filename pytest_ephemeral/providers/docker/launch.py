"""Launch one container; if a port is in use, try again with others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, Self
from urllib.parse import quote

import msgspec

from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Environment, Image
from pytest_ephemeral.providers import grace
from pytest_ephemeral.providers.docker import (
    containers,
    identity,
    image_store,
    masking,
    ports,
    resources,
)
from pytest_ephemeral.providers.docker.engine import Engine, EngineError
from pytest_ephemeral.providers.docker.environments import APP, MAIN, SERVING
from pytest_ephemeral.providers.docker.ports import Published
from pytest_ephemeral.providers.docker.resources import CONTAINER, name_of
from pytest_ephemeral.providers.docker.tables import DockerTemplate, bytes_of, volume_of
from pytest_ephemeral.providers.protocol import Order

#: The engine's default network. A new one would take 0.2 s, and an engine has addresses for only
#: some thirty networks.
_DEFAULT_NETWORK: Final = "default"


def launch_container(
    engine: Engine, order: Order, template: DockerTemplate, image: Image
) -> Environment:
    """Create a container with its network and volumes, and start it.

    Raises:
        EphemeralError: The engine refused; all resources so far have the environment's labels.
    """
    order = identity.begin_launch(order, engine)
    environment = order.environment
    made_labels = resources.labels_for(environment, "docker")
    body = {"Image": image_store.id_on(engine, image), **_body(order, template)}
    body["Labels"] |= made_labels
    network = _Network(engine, name_of(environment.id), made_labels) if template.isolated else None
    udp = image.handle.get("udp", "").split()
    attempt = _Attempt(engine, template, name_of(environment.id), body, network)
    container, published = attempt.start(
        lambda: ports.choose(
            engine,
            template.endpoints(),
            scheme=template.scheme,
            udp=[name for name, port in template.endpoints().items() if str(port) in udp],
        )
    )
    handle = {**environment.handle, CONTAINER: container, MAIN: APP, SERVING: APP}
    handle.update(grace.describe(template.grace))
    return msgspec.structs.replace(
        environment,
        endpoints=dict(published.endpoints),
        url=next((endpoint.url for endpoint in published.endpoints.values()), ""),
        handle=handle,
    )


class _Attempt:
    """Creates and starts a container, again with other ports if one is in use."""

    def __init__(
        self,
        engine: Engine,
        template: DockerTemplate,
        name: str,
        body: dict[str, Any],
        network: _Network | None,
    ) -> None:
        self._engine = engine
        self._template = template
        self._name = name
        self._body = body
        self._network = network

    def start(self, choose: Callable[[], Published]) -> tuple[str, Published]:
        """Create and start the container.

        Args:
            choose: Chooses the published ports; called for each attempt.

        Returns:
            The container's id, and its published ports.
        """
        for attempt in range(ports.ATTEMPTS):
            published = choose()
            container = self._create(published)
            try:
                self._engine.call("POST", f"/containers/{container}/start")
            except EngineError as error:
                if not ports.is_taken(str(error)) or attempt == ports.ATTEMPTS - 1:
                    raise
                resources.remove_container(self._engine, container)
            else:
                return container, published
        raise EphemeralError("no port is free")  # not reached: the last attempt raises

    def _create(self, published: Published) -> str:
        keys = {name: published.key(name) for name in published.inside}
        host = self._body["HostConfig"]
        host["PortBindings"] = {
            key: [{"HostIp": published.address, "HostPort": str(published.endpoints[name].port)}]
            for name, key in keys.items()
        }
        self._body["ExposedPorts"] = {key: {} for key in keys.values()}
        if self._network is None:
            _make_volumes(self._engine, self._body)
            container = self._request()
        else:
            host["NetworkMode"] = self._name
            with self._network:
                _make_volumes(self._engine, self._body)
                container = self._network.join(self._request)
        if self._template.network is not None:
            path = f"/networks/{quote(self._template.network, safe='')}/connect"
            self._engine.call("POST", path, body={"Container": container})
        return container

    def _request(self) -> str:
        query = {"name": self._name}
        made = self._engine.call("POST", "/containers/create", query=query, body=self._body)
        return str(made["Id"])


class _Network:
    """An environment's network, created in a thread while its container is created.

    A bridge takes an engine 0.1 s, for its rules in the kernel's packet filter. Docker needs the
    network when the container starts, Podman when it is created.
    """

    def __init__(self, engine: Engine, name: str, network_labels: Mapping[str, str]) -> None:
        self._engine = engine
        self._body = {"Name": name, "Labels": dict(network_labels)}
        self._error: EphemeralError | TimeoutError | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._thread is None:
            name = f"network {self._body['Name']}"
            self._thread = threading.Thread(target=self._create, name=name)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._wait()

    def join(self, create: Callable[[], str]) -> str:
        """Create a container on the network; if that fails, once more when the network exists."""
        try:
            return create()
        except EngineError:
            self._wait()
            return create()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _create(self) -> None:
        try:
            self._engine.call("POST", "/networks/create", body=self._body)
        except (EphemeralError, TimeoutError) as error:
            self._error = error


def _body(order: Order, template: DockerTemplate) -> dict[str, Any]:
    """The body of ``/containers/create``, without the image and the ports."""
    name = name_of(order.environment.id)
    command = template.command
    if isinstance(command, str):
        command = ["/bin/sh", "-c", command]
    body: dict[str, Any] = {
        "Cmd": command,
        "Env": [f"{key}={value}" for key, value in order.variables.items()],
        "Labels": masking.labels_for(order.variables, order.secrets),
        "HostConfig": _host_config(template, name),
    }
    if template.user is not None:
        body["User"] = template.user
    if template.stop_signal is not None:
        body["StopSignal"] = template.stop_signal
    return body


def _host_config(template: DockerTemplate, name: str) -> dict[str, Any]:
    host: dict[str, Any] = {
        "NetworkMode": _DEFAULT_NETWORK,
        "Mounts": [_mount(volume, name) for volume in template.volumes],
        "Tmpfs": dict(folder.partition(":")[::2] for folder in template.tmpfs),
        "LogConfig": containers.LOG_LIMITS,
        "ExtraHosts": template.extra_hosts,
        "CapAdd": template.cap_add,
    }
    if template.memory is not None:
        # MemorySwap is memory and swap together: the container is killed instead of swapping.
        host["Memory"] = host["MemorySwap"] = bytes_of(template.memory)
    if template.cpus is not None:
        host["NanoCpus"] = round(template.cpus * 10**9)
    if template.shm_size is not None:
        host["ShmSize"] = bytes_of(template.shm_size)
    if template.init:
        host["Init"] = True
    return host


def _mount(volume: str, prefix: str) -> dict[str, Any]:
    """A volume; without a name, it is anonymous, and removed with the container."""
    name, path = volume_of(volume)
    mount = {"Type": "volume", "Target": path}
    return {**mount, "Source": f"{prefix}-{name}"} if name else mount


def _make_volumes(engine: Engine, body: Mapping[str, Any]) -> None:
    """Create the named volumes with labels: Podman would create them without."""
    for mount in body["HostConfig"]["Mounts"]:
        if name := mount.get("Source"):
            volume = {"Name": name, "Labels": body["Labels"]}
            engine.call("POST", "/volumes/create", body=volume)
