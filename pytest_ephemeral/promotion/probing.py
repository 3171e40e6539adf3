"""The probes of a promotion: of the environment's own address, and of the production name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from pytest_ephemeral import interpolation, providers
from pytest_ephemeral.environments import readiness
from pytest_ephemeral.environments.probes import HttpProbe, Probe
from pytest_ephemeral.models import Endpoint, Environment
from pytest_ephemeral.tables import Promotion, Ready, Template

if TYPE_CHECKING:
    from http.client import HTTPConnection


def direct(promotion: Promotion, environment: Environment) -> list[Probe]:
    """The probes of the environment's own address."""
    return _probes(promotion, environment, _verify(promotion), {})


def through_name(
    promotion: Promotion, environment: Environment, addresses: Sequence[str]
) -> list[Probe]:
    """The probes of the production name, with the requests that its clients send.

    Args:
        promotion: The promotion's table, with ``record`` and ``verify``.
        environment: The environment that should respond.
        addresses: The addresses of the name, now or after the promotion. This machine's resolver is
            not used, because its cache may have the previous record.
    """
    verify = _verify(promotion)
    # The probes of the log and the command do not depend on the name.
    outside = msgspec.structs.replace(verify, log=None, command=None)
    if outside.http is None:
        outside = msgspec.structs.replace(outside, tcp=True)
    probes: list[Probe] = []
    for address in addresses:
        moved = {
            name: msgspec.structs.replace(endpoint, host=address)
            for name, endpoint in environment.endpoints.items()
        }
        there = msgspec.structs.replace(environment, endpoints=moved)
        host = {"Host": _authority(promotion, environment, verify)}
        for probe in _probes(promotion, there, outside, host):
            secure = isinstance(probe, HttpProbe) and probe.endpoint.scheme == "https"
            probes.append(_probe_under_name(probe, promotion.host) if secure else probe)
    return probes


class TlsProbe(HttpProbe, msgspec.Struct, frozen=True):
    """An HTTPS probe that connects to an address, and checks the certificate for a name.

    Attributes:
        name: The name in the request, for which the certificate must be valid.
    """

    name: str

    def _connection(self, seconds: float) -> HTTPConnection:
        import socket
        import ssl
        from http.client import HTTPSConnection

        address = (self.endpoint.host, self.endpoint.port)
        context = ssl.create_default_context()

        class There(HTTPSConnection):
            def connect(self) -> None:
                plain = socket.create_connection(address, timeout=self.timeout)
                self.sock = context.wrap_socket(plain, server_hostname=self.host)

        return There(self.name, self.endpoint.port, timeout=seconds, context=context)


def _probe_under_name(probe: Probe, name: str) -> TlsProbe:
    assert isinstance(probe, HttpProbe)
    return TlsProbe(probe.endpoint, probe.path, probe.accepted, probe.headers, name)


def _verify(promotion: Promotion) -> Ready:
    return promotion.verify or Ready(tcp=True)


def _authority(promotion: Promotion, environment: Environment, verify: Ready) -> str:
    """The production name with its port, as in an HTTP client's Host header."""
    endpoint = endpoint_of(environment, verify.port)
    default = {"http": 80, "https": 443}.get(endpoint.scheme)
    return promotion.host + ("" if endpoint.port == default else f":{endpoint.port}")


def endpoint_of(environment: Environment, name: str | None = None) -> Endpoint:
    """One of an environment's endpoints; by default the first one, which its URL has."""
    if name is not None:
        return environment.endpoints[name]
    return next(iter(environment.endpoints.values()))


def _probes(
    promotion: Promotion, environment: Environment, ready: Ready, more: dict[str, str]
) -> list[Probe]:
    where = f"promotion.{promotion.name}.verify.headers"
    filled = interpolation.fill(ready.headers, environ=os.environ, images={}, where=where)
    return readiness.probes_for(
        environment,
        Template(name=environment.template, provider=environment.provider, ready=ready),
        providers.load(environment.provider),
        {**more, **filled.variables},
    )
