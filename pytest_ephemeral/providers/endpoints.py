"""Endpoints of an environment, made from a host and its ports."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_ephemeral.models import Endpoint


def make_endpoints(
    host: str, ports: Mapping[str, int], scheme: str | None = None
) -> dict[str, Endpoint]:
    """Endpoints that all stand on one host.

    Args:
        host: A name or an address.
        ports: By endpoint name; ``https``, 443 and 8443 are taken to speak TLS.
        scheme: The first endpoint's, where the template says it.
    """
    first = next(iter(ports), "")
    return {
        name: Endpoint(host=host, port=port, scheme=(scheme if name == first else None) or usual)
        for name, port in ports.items()
        for usual in ["https" if _is_tls(name, port) else "http"]
    }


def _is_tls(name: str, port: int) -> bool:
    return name == "https" or port in {443, 8443}
