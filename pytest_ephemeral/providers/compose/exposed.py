"""The ports that a service of a Compose file listens on, according to the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def list_ports(service: Mapping[str, Any]) -> list[str]:
    """The ports that a file exposes for a service; ranges are not expanded."""
    return [port for port, _ in _exposed(service)]


def is_udp(service: Mapping[str, Any], port: int) -> bool:
    """Whether a file exposes a port of a service for UDP, and not for TCP."""
    return {protocol for one, protocol in _exposed(service) if one == str(port)} == {"udp"}


def _exposed(service: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for port in service.get("expose") or ():
        number, _, protocol = str(port).partition("/")
        yield number, protocol or "tcp"
    for port in service.get("ports") or ():
        if isinstance(port, dict):
            yield str(port["target"]), port.get("protocol") or "tcp"
        else:
            number, _, protocol = str(port).rpartition(":")[2].partition("/")
            yield number, protocol or "tcp"
