"""Make the endpoints of an environment from a host and its ports."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_ephemeral.models import Endpoint


def make_endpoints(
    host: str, ports: Mapping[str, int], scheme: str | None = None
) -> dict[str, Endpoint]:
    """Make endpoints on one host.

    Args:
        host: A host name or an address.
        ports: The ports by endpoint name. The name ``https`` and the ports 443 and 8443 get the
            scheme ``https``, all others ``http``.
        scheme: The scheme of the first endpoint, if the template has one.
    """
    first = next(iter(ports), "")
    return {
        name: Endpoint(host=host, port=port, scheme=(scheme if name == first else None) or usual)
        for name, port in ports.items()
        for usual in ["https" if _is_tls(name, port) else "http"]
    }


def _is_tls(name: str, port: int) -> bool:
    return name == "https" or port in {443, 8443}
