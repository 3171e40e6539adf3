"""Find out where a container's processes listen, from its network namespace.

The engine's proxy accepts connections to a published port as soon as the container starts. If no
process listens, the proxy closes the connection, after a time that depends on the machine's load
and on the network. ``/proc/PID/net/tcp`` on Linux shows without a connection whether a process
listens (https://docs.kernel.org/networking/proc_net_tcp.html). The file is read here if the engine
is on this machine, and for messages by a command inside the container.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final

from pytest_ephemeral.models import Endpoint
from pytest_ephemeral.providers.docker import containers, resources
from pytest_ephemeral.providers.docker.engine import Engine

_LISTEN: Final = "0A"
_ANY: Final = "0.0.0.0"  # noqa: S104 - shown, not bound


def is_listening(engine: Engine, id: str, endpoint: Endpoint) -> bool | None:
    """Whether a container of an environment listens on the port behind an endpoint.

    Args:
        engine: The environment's engine.
        id: The environment's id.
        endpoint: The published endpoint.

    Returns:
        None if this can't be found out: the engine is on another machine or in a virtual machine,
        or no container publishes the port.
    """
    for one in () if engine.address.host else resources.containers(engine, id):
        if endpoint.port in {port.get("PublicPort") for port in one.get("Ports") or ()}:
            return _is_listening(containers.inspect(engine, one["Id"]), endpoint.port)
    return None


def _is_listening(found: Mapping[str, Any], published: int) -> bool | None:
    port, pid = _port_inside(found, published), found["State"].get("Pid")
    if not port or not pid:
        return None
    try:
        if found["Id"] not in Path(f"/proc/{pid}/cgroup").read_text():
            return None  # the pid is that of another process on this machine
        return any(
            port in list_listeners(Path(f"/proc/{pid}/net/{name}").read_text())
            for name in ("tcp", "tcp6")
        )
    except OSError:
        return None


def describe_listeners(engine: Engine, container: str) -> str:
    """A message on where a container listens; empty if it listens on the published ports.

    Empty, too, if that can't be read, as the image has no ``cat``.
    """
    bindings = containers.inspect(engine, container)["NetworkSettings"]["Ports"]
    wanted = {int(port.partition("/")[0]) for port, hosts in bindings.items() if hosts}
    tables = ["/proc/net/tcp", "/proc/net/tcp6"]
    done = containers.run(engine, container, ["cat", *tables], timeout=5)
    if not done.stdout:
        return ""
    ports = ", ".join(map(str, sorted(wanted)))
    # The engine's own name server listens on 127.0.0.11 in every container.
    found = {port: host for host, port in _listeners(done.stdout) if host != "127.0.0.11"}
    if not found:
        return f"nothing listens inside the container, on port {ports} or any other"
    if loopback := [port for port in wanted if _is_loopback(found.get(port, ""))]:
        where = ", ".join(f"{found[port]}:{port}" for port in loopback)
        return f"it listens on {where} inside, which is not reachable from outside: bind 0.0.0.0"
    if missing := wanted - found.keys():
        missed = ", ".join(map(str, sorted(missing)))
        places = ", ".join(sorted(f"{host}:{port}" for port, host in found.items()))
        return f"nothing listens on port {missed} inside it; these do: {places}"
    return ""


def list_listeners(table: str) -> set[int]:
    """The ports on which a process accepts connections from outside the container.

    Args:
        table: The text of ``/proc/net/tcp`` or ``tcp6``.
    """
    return {port for host, port in _listeners(table) if not _is_loopback(host)}


def _listeners(tables: str) -> Iterator[tuple[str, int]]:
    """The addresses and ports in such texts; ``0.0.0.0`` for all addresses of either kind."""
    for line in tables.splitlines():
        _, local, _, state, *_ = f"{line} - - - -".split()
        address, _, port = local.partition(":")
        if state == _LISTEN:
            # The address consists of 32-bit words, which are little-endian.
            words = [address[at : at + 8] for at in range(0, len(address), 8)]
            host = ip_address(b"".join(bytes.fromhex(word)[::-1] for word in words))
            mapped = host.ipv4_mapped if isinstance(host, IPv6Address) else None
            yield _ANY if host.is_unspecified else str(mapped or host), int(port, 16)


def _is_loopback(host: str) -> bool:
    return host != "" and ip_address(host).is_loopback


def _port_inside(found: Mapping[str, Any], published: int) -> int:
    """The container's port that is published on a port of this machine; 0 if there is none."""
    ports = (found.get("NetworkSettings") or {}).get("Ports") or {}
    for name, places in ports.items():
        number, _, protocol = name.partition("/")
        if protocol == "tcp" and str(published) in {one["HostPort"] for one in places or ()}:
            return int(number)
    return 0
