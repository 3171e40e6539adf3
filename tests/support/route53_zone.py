"""A zone in a strict simulation of Route 53, and records for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_ephemeral.promotion import dns
from pytest_ephemeral.promotion.dns import DnsRecord
from pytest_ephemeral.tables import Promotion
from support.route53 import StrictRoute53

ZONE = "example.test"


NAME = f"shop.{ZONE}"


BALANCER = "shop-123.eu-central-1.elb.amazonaws.com"


ALIAS = {"HostedZoneId": "Z215", "DNSName": f"{BALANCER}.", "EvaluateTargetHealth": False}


A = DnsRecord(kind="A", ttl=30, values=["127.1.1.1"])


B = DnsRecord(kind="A", ttl=60, values=["127.2.2.2"])


SIX = DnsRecord(kind="AAAA", ttl=30, values=["2001:db8::1"])


NAMED = DnsRecord(kind="CNAME", ttl=30, values=["elsewhere.example.org"])


BALANCED = DnsRecord(kind="A", rest={"AliasTarget": ALIAS})


def promotion(**changes: Any) -> Promotion:
    return Promotion(
        **{"name": "production", "dns": "route53", "zone": ZONE, "record": NAME, **changes}
    )


@pytest.fixture
def strict() -> StrictRoute53:
    """Route 53, simulated as strictly as AWS, unlike moto."""
    return StrictRoute53(ZONE)


@pytest.fixture
def make_backend(strict: StrictRoute53) -> Callable[..., Any]:
    """Make the backend of a promotion, with the strict simulation as its client."""

    def make(**changes: Any) -> Any:
        made: Any = dns.load(promotion(**changes), Path("/"))
        made._client = strict
        return made

    return make


@pytest.fixture
def backend(make_backend: Callable[..., Any]) -> Any:
    """The backend of a promotion with default settings."""
    return make_backend()
