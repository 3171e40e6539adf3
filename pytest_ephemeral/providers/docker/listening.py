"""Find out whether a container's processes listen, from its network namespace.

The engine's proxy accepts connections to a published port as soon as the container starts. If no
process listens, the proxy closes the connection, after a time that depends on the machine's load
and on the network. ``/proc/PID/net/tcp`` on Linux shows without a connection whether a process
listens (https://docs.kernel.org/networking/proc_net_tcp.html).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pytest_ephemeral.models import Endpoint
from pytest_ephemeral.providers.docker import containers, resources
from pytest_ephemeral.providers.docker.engine import Engine

_LISTEN: Final = "0A"


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


def list_listeners(table: str) -> set[int]:
    """The ports on which a process accepts connections from outside the container.

    Args:
        table: The text of ``/proc/net/tcp`` or ``tcp6``.
    """
    found = set()
    for line in table.splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        address, _, port = local.partition(":")
        if state == _LISTEN and not _is_loopback(address):
            found.add(int(port, 16))
    return found


def _is_loopback(address: str) -> bool:
    """Whether an address is a loopback address; its 32-bit words are little-endian."""
    words = [bytes.fromhex(address[at : at + 8])[::-1].hex() for at in range(0, len(address), 8)]
    text = "".join(words)
    if len(text) == 8:
        return text.startswith("7f")
    return text.startswith(f"{'0' * 20}ffff7f") or text == f"{'0' * 31}1"


def _port_inside(found: Mapping[str, Any], published: int) -> int:
    """The container's port that is published on a port of this machine; 0 if there is none."""
    ports = (found.get("NetworkSettings") or {}).get("Ports") or {}
    for name, places in ports.items():
        number, _, protocol = name.partition("/")
        if protocol == "tcp" and str(published) in {one["HostPort"] for one in places or ()}:
            return int(number)
    return 0
