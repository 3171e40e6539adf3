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

from pytest_ephemeral.errors import LaunchError
from pytest_ephemeral.models import Endpoint
from pytest_ephemeral.providers.docker.engine import Engine
from pytest_ephemeral.providers.endpoints import make_endpoints

LOOPBACK: Final = "127.0.0.1"

#: How often ports are chosen at most.
ATTEMPTS: Final = 8

#: How often a range of free ports is looked for at most.
_RANGE_ATTEMPTS: Final = 100

#: Host names in the addresses of engines on this machine.
_HERE: Final = frozenset({"", LOOPBACK, "localhost", "::1"})
_ANYWHERE: Final = "0.0.0.0"  # noqa: S104 - this machine must reach a remote engine's ports

#: The ports to choose from on another machine: Linux's default range of ephemeral ports.
_RANGE: Final = range(32768, 60999)

#: Messages of engines for a port that is in use.
_TAKEN: Final = (
    "port is already allocated",
    "all ports are allocated",
    "address already in use",
    "ports are not available",
)

#: The scheme of an endpoint with a UDP port.
UDP: Final = "udp"


class Published(msgspec.Struct, frozen=True):
    """The published ports of one environment.

    Attributes:
        address: The address that the engine listens on.
        endpoints: The endpoints to connect to from this machine, by name.
        inside: The ports inside the containers, by name.
        counts: The number of containers of an endpoint, by name. Several containers share a range
            of as many ports, which begins with the endpoint's.
        ranges: Whether the engine accepts ranges. Podman does not; it chooses a port when it
            creates a container, and keeps it.
    """

    address: str
    endpoints: Mapping[str, Endpoint]
    inside: Mapping[str, int]
    counts: Mapping[str, int] = {}
    ranges: bool = True

    def protocol(self, name: str) -> str:
        """``tcp`` or ``udp``."""
        return UDP if self.endpoints[name].scheme == UDP else "tcp"

    def key(self, name: str) -> str:
        """A container's port in the engine's form, such as ``8080/tcp``."""
        return f"{self.inside[name]}/{self.protocol(name)}"

    def map_port(self, name: str) -> str:
        """A published port in a Compose file's form, such as ``127.0.0.1:49160:8080/tcp``.

        For several containers it is a range, of which each takes a free port when it starts.
        """
        first, count = self.endpoints[name].port, self.counts.get(name, 1)
        published = str(first) if count < 2 else f"{first}-{first + count - 1}"
        if count > 1 and not self.ranges:
            published = ""
        return f"{self.address}:{published}:{self.key(name)}"


def choose(
    engine: Engine,
    inside: Mapping[str, int],
    *,
    scheme: str | None = None,
    udp: Iterable[str] = (),
    host_network: Iterable[str] = (),
    counts: Mapping[str, int] | None = None,
) -> Published:
    """Choose the published ports of an environment.

    Args:
        engine: The engine that it will run on.
        inside: The ports inside the containers, by endpoint; the URL's first.
        scheme: The scheme of the URL.
        udp: The endpoints with UDP ports.
        host_network: The endpoints of containers on the host network, whose ports are not mapped.
        counts: The number of containers of an endpoint, if it is not 1.

    Raises:
        LaunchError: This machine has too few free ports.
    """
    counts = counts or {}
    is_here = engine.address.host in _HERE
    host = LOOPBACK if is_here else engine.address.host
    described = make_endpoints(host, inside, scheme)
    for name in udp:
        described[name] = msgspec.structs.replace(described[name], scheme=UDP)
    with ExitStack() as held:  # keep all sockets open, so that no port is chosen twice
        for name in [one for one in described if one not in set(host_network)]:
            is_udp, count = described[name].scheme == UDP, counts.get(name, 1)
            port = random.choice(_RANGE)  # noqa: S311
            if is_here:
                port = _free_ports(held, count, udp=is_udp)
            described[name] = msgspec.structs.replace(described[name], port=port)
    return Published(LOOPBACK if is_here else _ANYWHERE, described, inside, counts)


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
    return any(phrase in text.lower() for phrase in _TAKEN)


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


def _free_ports(held: ExitStack, count: int, *, udp: bool) -> int:
    """The first of a range of free ports, which stay bound until the stack is closed."""
    for _ in range(_RANGE_ATTEMPTS):
        with ExitStack() as bound, suppress(OSError, OverflowError):
            first = _bind(bound, 0, udp=udp)
            for port in range(first + 1, first + count):
                _bind(bound, port, udp=udp)
            held.enter_context(bound.pop_all())
            return first
    raise LaunchError(f"this machine has no range of {count} free ports")


def _bind(held: ExitStack, port: int, *, udp: bool) -> int:
    kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
    probe = held.enter_context(socket.socket(socket.AF_INET, kind))
    probe.bind((LOOPBACK, port))
    bound: int = probe.getsockname()[1]
    return bound
