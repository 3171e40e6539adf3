"""BIND for tests, with a name in its zone and records for the name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_ephemeral.promotion import dns
from pytest_ephemeral.promotion.dns import DnsRecord, rfc2136
from pytest_ephemeral.tables import Promotion
from support.lacks import skip_without
from support.nameserver import (
    PROGRAMS,
    ZONE,
    Nameserver,
    Relay,
    find_program,
    running,
)
from support.promotion import free_port

_numbers = itertools.count()


@pytest.fixture(scope="module")
def nameserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nameserver]:
    """BIND's primary and secondary servers."""
    if not all(map(find_program, PROGRAMS)):
        skip_without("BIND", "apt-get install bind9 bind9-dnsutils")
    with running(tmp_path_factory.mktemp("bind")) as made:
        yield made


@pytest.fixture
def name() -> str:
    """A name of the zone that no other test uses."""
    return f"shop-{next(_numbers)}.{ZONE}"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the time-out of servers that do not answer."""
    monkeypatch.setattr(rfc2136, "TIMEOUT", 0.4)


@pytest.fixture
def relay(nameserver: Nameserver, impatient: None) -> Iterator[Relay]:
    """A relay to BIND that a test can let fail, with a short time-out."""
    made = Relay("127.0.0.1", free_port("127.0.0.1"), nameserver.own_port)
    yield made
    made.stop()


def promotion(nameserver: Nameserver, name: str, **changes: Any) -> Promotion:
    settings = {
        "name": "production",
        "dns": "rfc2136",
        "zone": ZONE,
        "record": name,
        "server": nameserver.address,
        "key": str(nameserver.key),
    }
    return Promotion(**{**settings, **changes})


def backend(nameserver: Nameserver, name: str, **changes: Any) -> Any:
    return dns.load(promotion(nameserver, name, **changes), Path("/"))


A = DnsRecord(kind="A", ttl=5, values=["127.1.1.1"])


B = DnsRecord(kind="A", ttl=7, values=["127.2.2.2"])


SIX = DnsRecord(kind="AAAA", ttl=5, values=["2001:db8::1"])


ALIAS = DnsRecord(kind="CNAME", ttl=5, values=["elsewhere.example.org"])
