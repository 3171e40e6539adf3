"""The ports of this machine that an environment's are published on: chosen once, and kept.

An engine that chooses them itself chooses others whenever a container is started again, and a
container that is just being restarted has none. So they are chosen here, before anything is made,
and are the same for the environment's life. Another process may be faster; then the engine refuses,
and others are chosen.
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

#: How often other ports are chosen.
ATTEMPTS: Final = 8

#: Hosts by which a tcp engine of this machine is addressed.
_HERE: Final = frozenset({"", LOOPBACK, "localhost", "::1"})
_ANYWHERE: Final = "0.0.0.0"  # noqa: S104 - a remote engine's ports are reached from here

#: Where another machine's ports are chosen from: Linux's default range of ephemeral ports.
_RANGE: Final = range(32768, 60999)

#: How engines say that a port is in use.
_TAKEN: Final = ("port is already allocated", "address already in use", "ports are not available")

#: The scheme of an endpoint whose port is no TCP port.
UDP: Final = "udp"


class Published(msgspec.Struct, frozen=True):
    """Where the ports of one environment are published.

    Attributes:
        address: What the engine listens on.
        endpoints: Where they are reached from here, by name.
        inside: The ports inside the containers, by name.
    """

    address: str
    endpoints: Mapping[str, Endpoint]
    inside: Mapping[str, int]

    def protocol(self, name: str) -> str:
        """``tcp`` or ``udp``."""
        return UDP if self.endpoints[name].scheme == UDP else "tcp"

    def key(self, name: str) -> str:
        """A port inside as engines write it, such as ``8080/tcp``."""
        return f"{self.inside[name]}/{self.protocol(name)}"

    def map_port(self, name: str) -> str:
        """A port as a Compose file writes it, such as ``127.0.0.1:49160:8080/tcp``."""
        return f"{self.address}:{self.endpoints[name].port}:{self.key(name)}"


def choose(
    engine: Engine,
    inside: Mapping[str, int],
    *,
    scheme: str | None = None,
    udp: Iterable[str] = (),
    host_network: Iterable[str] = (),
) -> Published:
    """Choose where an environment's ports are published.

    Args:
        engine: Where it will run.
        inside: The ports inside it, by endpoint; the URL's first.
        scheme: The scheme of the URL.
        udp: The endpoints that are no TCP ports.
        host_network: The endpoints of containers on the machine's own network, whose ports are
            there as they are.
    """
    is_here = engine.address.host in _HERE
    host = LOOPBACK if is_here else engine.address.host
    described = make_endpoints(host, inside, scheme)
    for name in udp:
        described[name] = msgspec.structs.replace(described[name], scheme=UDP)
    with ExitStack() as held:  # until all are chosen, so that no two are the same
        for name in [one for one in described if one not in set(host_network)]:
            is_udp = described[name].scheme == UDP
            port = _free_port(held, udp=is_udp) if is_here else random.choice(_RANGE)  # noqa: S311
            described[name] = msgspec.structs.replace(described[name], port=port)
    return Published(LOOPBACK if is_here else _ANYWHERE, described, inside)


def is_in_use(engine: Engine, port: int, *, udp: bool = False) -> bool:
    """Whether somebody has a port on an engine's machine; False where that can't be seen."""
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
    """Whether an engine's refusal is that a port is in use."""
    return any(said in text.lower() for said in _TAKEN)


def list_unpublished(container: Mapping[str, Any], endpoints: Iterable[Endpoint]) -> list[int]:
    """The ports of endpoints that a container does not publish just now.

    Args:
        container: As the engine lists it.
        endpoints: Those that should be its.
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
