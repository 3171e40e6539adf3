"""Route 53, on a simulation that is as strict as AWS."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_ephemeral.errors import (
    ConfigurationError,
    DnsError,
    DnsUnavailableError,
    NameChangedError,
    PromotionError,
)
from pytest_ephemeral.promotion import dns
from pytest_ephemeral.promotion.dns import DnsRecord
from pytest_ephemeral.promotion.dns_polling import Times
from support.promotion import Stage
from support.route53 import StrictRoute53
from support.route53_zone import (
    BALANCED,
    BALANCER,
    NAME,
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


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([A], [B]),
        ([A], [SIX]),
        ([A], [NAMED]),
        ([NAMED], [A]),
        ([BALANCED], [A]),
        ([A, SIX], [BALANCED]),
        ([A], [B, SIX]),
    ],
)
def test_a_record_is_replaced_in_one_batch(
    backend: Any, strict: StrictRoute53, old: list[DnsRecord], new: list[DnsRecord]
) -> None:
    """A record can be replaced by one of another type, and back."""
    backend.swap([], old)

    backend.swap(old, new)

    assert backend.read() == new
    assert strict.batches[-1] == ["DELETE"] * len(old) + ["CREATE"] * len(new)
    backend.swap(new, old)
    assert backend.read() == old


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        [B],
        [SIX],
        [DnsRecord(kind="A", ttl=31, values=["127.1.1.1"])],
        [DnsRecord(kind="A", ttl=30, values=["127.1.1.1", "127.1.1.2"])],
        [BALANCED],
    ],
)
def test_a_mismatched_old_record_is_not_replaced(
    backend: Any, strict: StrictRoute53, wrong: list[DnsRecord]
) -> None:
    """A DELETE must match in all parts, with the TTL; the error shows the record."""
    backend.swap([], [A])

    with pytest.raises(NameChangedError, match=r"it is A 30s 127\.1\.1\.1 in Route 53"):
        backend.swap(wrong, [B])

    assert backend.read() == [A]


def test_a_change_is_pending_until_all_servers_have_it(backend: Any) -> None:
    """Route 53 reports the status of a change."""
    change = backend.swap([], [A])

    assert "PENDING" in backend.find_lagging([A], change)
    assert backend.find_lagging([A], change) == ""
    assert "A 30s" in backend.find_lagging([B], change)


def test_a_batch_with_a_lost_response_is_detected(
    backend: Any, strict: StrictRoute53, monkeypatch: pytest.MonkeyPatch
) -> None:
    """boto3 repeats the batch, which is refused; the record shows that it was applied."""
    backend.swap([], [A])
    send, times = strict.change_resource_record_sets, iter([2])

    def lose_the_first_answer(**batch: Any) -> Any:
        return [send(**batch) for _ in range(next(times, 1))][-1]

    monkeypatch.setattr(strict, "change_resource_record_sets", lose_the_first_answer)
    change = backend.swap([A], [B])

    assert backend.read() == [B]
    assert "PENDING" in backend.find_lagging([B], change)
    with pytest.raises(NameChangedError, match=r"127\.2\.2\.2"):
        backend.swap([A], [SIX])


def test_an_escaped_wildcard_name_is_recognized(
    make_backend: Callable[..., Any], strict: StrictRoute53
) -> None:
    """Route 53 returns the asterisk of a wildcard as an octal number."""
    wildcard = make_backend(record=f"*.{ZONE}")
    wildcard.swap([], [A])
    for one in strict.sets:
        one["Name"] = one["Name"].replace("*", "\\052")

    assert wildcard.read() == [A]


def test_a_refused_batch_is_not_taken_for_a_foreign_change(backend: Any) -> None:
    """The error has AWS's own message."""
    backend.swap([], [A])

    with pytest.raises(DnsError, match="beside nothing else") as caught:
        backend.swap([A], [NAMED, SIX])

    assert not isinstance(caught.value, NameChangedError)


def test_weighted_records_are_distinguished(
    make_backend: Callable[..., Any], strict: StrictRoute53
) -> None:
    """Only the record with the set identifier changes, and it keeps its weight."""
    for who, weight in (("blue", 90), ("green", 10)):
        strict.sets.append(
            {
                "Name": f"{NAME}.",
                "Type": "A",
                "TTL": 30,
                "SetIdentifier": who,
                "Weight": weight,
                "ResourceRecords": [{"Value": f"127.0.0.{weight}"}],
            }
        )
    with pytest.raises(ConfigurationError, match="set-identifier = one of blue, green"):
        make_backend().read()
    backend = make_backend(set_identifier="blue")
    old = backend.read()

    backend.swap(old, backend.records_for("127.2.2.2", 30, old))

    moved = {one["SetIdentifier"]: one for one in strict.sets if "SetIdentifier" in one}
    assert moved["blue"]["Weight"] == 90
    assert moved["blue"]["ResourceRecords"] == [{"Value": "127.2.2.2"}]
    assert moved["green"]["ResourceRecords"] == [{"Value": "127.0.0.10"}]
    with pytest.raises(DnsError, match="no record with the set identifier 'red'"):
        make_backend(set_identifier="red").records_for("127.2.2.2", 30, [])


def test_only_the_names_own_records_are_read(backend: Any, strict: StrictRoute53) -> None:
    """Records of other names and other types are left out, on all pages."""
    for name, kind in (
        (f"a.{ZONE}", "A"),
        (NAME, "TXT"),
        (NAME, "MX"),
        (NAME, "AAAA"),
        (NAME, "A"),
        (f"x.{NAME}", "A"),
        (f"zz.{ZONE}", "A"),
    ):
        value = {"A": "127.1.1.1", "AAAA": "2001:db8::1"}.get(kind, "x")
        strict.sets.append(
            {"Name": f"{name}.", "Type": kind, "TTL": 30, "ResourceRecords": [{"Value": value}]}
        )

    assert backend.read() == [A, SIX]


@pytest.mark.parametrize("code", ["PriorRequestNotComplete", "Throttling", "ServiceUnavailable"])
def test_temporary_errors_are_distinguished_from_refusals(
    backend: Any, strict: StrictRoute53, code: str
) -> None:
    """A temporary error is retried; a refusal is final."""
    strict.failing = [code]
    with pytest.raises(DnsUnavailableError):
        backend.read()
    strict.failing = ["AccessDenied"]
    with pytest.raises(DnsError, match="may not do this") as caught:
        backend.read()
    assert not isinstance(caught.value, DnsUnavailableError)


def test_the_zone_apex_accepts_only_addresses(make_backend: Callable[..., Any]) -> None:
    """A CNAME is refused at the apex."""
    backend = make_backend(record=ZONE)

    with pytest.raises(DnsError, match="the zone's own name"):
        backend.records_for("elsewhere.example.org", 30, [])
    backend.swap([], backend.records_for("127.1.1.1", 30, []))


def test_the_addresses_of_an_alias_are_resolved(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients connect to the addresses of the alias's target."""
    monkeypatch.setattr(
        "pytest_ephemeral.promotion.dns.route53.resolve", lambda name: [f"addresses of {name}"]
    )
    backend.swap([], [BALANCED])
    assert backend.addresses() == [f"addresses of {BALANCER}."]


#: By missing setting: the variables that are set, and the expected message.
MISSING = {
    "credentials": ({"AWS_DEFAULT_REGION": "eu-west-1"}, "no credentials.*AWS_PROFILE"),
    "region": ({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}, "no region: set AWS_DEF"),
    "profile": ({"AWS_PROFILE": "nobody"}, "nobody.*aws configure list-profiles"),
}


@pytest.mark.parametrize("what", MISSING)
def test_missing_local_settings_fail_at_once(
    what: str, make_stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retries would not help: the promotion fails in one line, without waiting."""
    variables, said = MISSING[what]
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stage, asked = make_stage(dns="route53", zone=ZONE, record=NAME), time.monotonic()
    with pytest.raises(PromotionError, match=said):
        stage.promoter(backend=dns.load(promotion(), Path("/")), times=Times()).promote("v1")
    assert time.monotonic() - asked < 10


def test_retries_of_an_unreachable_service_are_reported_once(
    make_stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line names the address, and how long the retries may take."""
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_MAX_ATTEMPTS": "1",  # no retries by boto3, whose pauses vary
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }.items():
        monkeypatch.setenv(name, value)
    stage, backend = make_stage(), dns.load(promotion(), Path("/"))
    clock = itertools.count(0, 0.1)  # a loaded machine takes seconds for one attempt
    times = Times(patience=0.5, monotonic=clock.__next__)
    with pytest.raises(PromotionError, match="can't be reached"):
        stage.promoter(backend=backend, times=times).promote("v1")
    (line,) = [event.text for event in stage.events if event.step == "retry"]
    assert "127.0.0.1:9" in line
    assert line.endswith("asked again for 0.5 s")
