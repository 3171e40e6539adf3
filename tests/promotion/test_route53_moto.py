"""Route 53, on moto's server over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from pytest_ephemeral.errors import (
    ConfigurationError,
    DnsError,
    NameChangedError,
)
from pytest_ephemeral.promotion import dns
from support.route53_zone import (
    BALANCER,
    NAMED,
    SIX,
    ZONE,
    A,
    B,
    backend,
    make_backend,
    promotion,
    strict,
)

__all__ = ["backend", "make_backend", "strict"]

# -- over HTTP -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """Start moto's server, and return its URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def account(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Create the zone in an account of boto3's usual variables, and return its id."""
    for key, value in {
        "AWS_ENDPOINT_URL": moto,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }.items():
        monkeypatch.setenv(key, value)
    client = boto3.client("route53")
    made = client.create_hosted_zone(Name=ZONE, CallerReference="test")
    id = made["HostedZone"]["Id"]
    yield id.rpartition("/")[2]
    for one in client.list_resource_record_sets(HostedZoneId=id)["ResourceRecordSets"]:
        if one["Type"] not in {"NS", "SOA"}:
            change = {"Action": "DELETE", "ResourceRecordSet": one}
            client.change_resource_record_sets(HostedZoneId=id, ChangeBatch={"Changes": [change]})
    client.delete_hosted_zone(Id=id)
    client.close()


@pytest.mark.parametrize("by", ["name", "id"])
def test_records_are_changed_on_a_moto_server(account: str, by: str) -> None:
    """The zone is found by its name or its id."""
    backend: Any = dns.load(promotion(zone=account if by == "id" else ZONE), Path("/"))

    change = backend.swap([], [A])
    assert backend.find_lagging([A], change) == ""
    backend.swap([A], [NAMED])
    assert backend.read() == [NAMED]
    backend.swap([NAMED], [B, SIX])

    assert backend.read() == [B, SIX]
    assert backend.addresses() == ["127.2.2.2", "2001:db8::1"]
    with pytest.raises(NameChangedError):
        backend.swap([A], [B])
    backend._client.close()


def test_a_missing_or_ambiguous_zone_is_reported(account: str) -> None:
    """The error of an ambiguous zone has the ids."""
    missing: Any = dns.load(promotion(zone="other.test", record="shop.other.test"), Path("/"))
    with pytest.raises(ConfigurationError, match="there is none"):
        missing.read()
    client = boto3.client("route53")
    second = client.create_hosted_zone(Name=ZONE, CallerReference="again")["HostedZone"]["Id"]
    double: Any = dns.load(promotion(), Path("/"))
    with pytest.raises(ConfigurationError, match=f"there are several: .*{account}"):
        double.read()
    client.delete_hosted_zone(Id=second)
    for each in (client, missing._client, double._client):
        each.close()


def test_a_load_balancer_becomes_an_alias(account: str) -> None:
    """The record of a load balancer's host is an alias in the balancer's own zone."""
    ec2, elb = boto3.client("ec2"), boto3.client("elbv2")
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(
            VpcId=vpc, CidrBlock=f"10.9.{n}.0/24", AvailabilityZone=f"eu-central-1{z}"
        )
        for n, z in enumerate("ab")
    ]
    made = elb.create_load_balancer(
        Name="shop", Subnets=[one["Subnet"]["SubnetId"] for one in subnets]
    )["LoadBalancers"][0]
    backend: Any = dns.load(promotion(), Path("/"))

    [record] = backend.records_for(made["DNSName"], 30, [])

    assert record.kind == "A"
    assert record.rest["AliasTarget"]["HostedZoneId"] == made["CanonicalHostedZoneId"]
    backend.swap([], [record])
    assert backend.read() == [record]
    with pytest.raises(DnsError, match="no load balancer"):
        backend.records_for(BALANCER, 30, [])
    elb.delete_load_balancer(LoadBalancerArn=made["LoadBalancerArn"])
    for each in (ec2, elb, backend._client):
        each.close()
