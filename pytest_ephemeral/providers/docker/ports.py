"""Choose the ports of this machine on which an environment's ports are published.

An engine would choose new ports whenever a container is started again. So the ports are chosen
here, before anything is created, and stay the same until the environment ends. If another process
takes one first, the engine refuses, and other ports are chosen.
"""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from typing import Any, Final

import msgspec

from pytest_ephemeral.models import Endpoint
from pytest_ephemeral.providers.docker.engine import Engine
from pytest_ephemeral.providers.endpoints import make_endpoints

LOOPBACK: Final = "127.0.0.1"

#: How often ports are chosen at most.
ATTEMPTS: Final = 8

#: Host names in the addresses of engines on this machine.
_HERE: Final = frozenset({"", LOOPBACK, "localhost", "::1"})
_ANYWHERE: Final = "0.0.0.0"  # noqa: S104 - this machine must reach a remote engine's ports

#: The ports to choose from on another machine: Linux's default range of ephemeral ports.
_RANGE: Final = range(32768, 60999)

#: Messages of engines for a port that is in use.
_TAKEN: Final = ("port is already allocated", "address already in use", "ports are not available")

#: The scheme of an endpoint with a UDP port.
UDP: Final = "udp"


class Published(msgspec.Struct, frozen=True):
    """The published ports of one environment.

    Attributes:
        address: The address that the engine listens on.
        endpoints: The endpoints to connect to from this machine, by name.
        inside: The ports inside the containers, by name.
    """

    address: str
    endpoints: Mapping[str, Endpoint]
    inside: Mapping[str, int]

    def protocol(self, name: str) -> str:
        """``tcp`` or ``udp``."""
        return UDP if self.endpoints[name].scheme == UDP else "tcp"

    def key(self, name: str) -> str:
        """A container's port in the engine's form, such as ``8080/tcp``."""
        return f"{self.inside[name]}/{self.protocol(name)}"

    def map_port(self, name: str) -> str:
        """A published port in a Compose file's form, such as ``127.0.0.1:49160:8080/tcp``."""
        return f"{self.address}:{self.endpoints[name].port}:{self.key(name)}"


def choose(
    engine: Engine,
    inside: Mapping[str, int],
    *,
    scheme: str | None = None,
    udp: Iterable[str] = (),
    host_network: Iterable[str] = (),
) -> Published:
    """Choose the published ports of an environment.

    Args:
        engine: The engine that it will run on.
        inside: The ports inside the containers, by endpoint; the URL's first.
        scheme: The scheme of the URL.
        udp: The endpoints with UDP ports.
        host_network: The endpoints of containers on the host network, whose ports are not mapped.
    """
    is_here = engine.address.host in _HERE
    host = LOOPBACK if is_here else engine.address.host
    described = make_endpoints(host, inside, scheme)
    for name in udp:
        described[name] = msgspec.structs.replace(described[name], scheme=UDP)
    with ExitStack() as held:  # keep all sockets open, so that no port is chosen twice
        for name in [one for one in described if one not in set(host_network)]:
            is_udp = described[name].scheme == UDP
            port = _free_port(held, udp=is_udp) if is_here else random.choice(_RANGE)  # noqa: S311
            described[name] = msgspec.structs.replace(described[name], port=port)
    return Published(LOOPBACK if is_here else _ANYWHERE, described, inside)


def is_in_use(engine: Engine, port: int, *, udp: bool = False) -> bool:
    """Whether a port on an engine's machine is in use; False for a remote machine."""
    if engine.address.host not in _HERE:
        return False
    if not udp:
        with suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
            return True
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def is_taken(text: str) -> bool:
    """Whether an engine's message means that a port is in use."""
    return any(said in text.lower() for said in _TAKEN)


def list_unpublished(container: Mapping[str, Any], endpoints: Iterable[Endpoint]) -> list[int]:
    """The ports of endpoints that a container does not publish now.

    Args:
        container: The container, from the engine's list.
        endpoints: The endpoints that it should publish.
    """
    if (container.get("HostConfig") or {}).get("NetworkMode") == "host":
        return []
    public = {port.get("PublicPort") for port in container.get("Ports") or ()}
    return [endpoint.port for endpoint in endpoints if endpoint.port not in public]


def _free_port(held: ExitStack, *, udp: bool) -> int:
    kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
    probe = held.enter_context(socket.socket(socket.AF_INET, kind))
    probe.bind((LOOPBACK, 0))
    port: int = probe.getsockname()[1]
    return port
