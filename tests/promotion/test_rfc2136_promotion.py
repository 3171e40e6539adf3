"""Promotions with RFC 2136: BIND's answers before, during and after them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from pytest_ephemeral.durations import Duration
from pytest_ephemeral.errors import (
    DnsUnavailableError,
    PromotionError,
)
from support.nameserver import (
    PRIMARY,
    SECONDARY,
    ZONE,
    Nameserver,
    Relay,
    answer_with,
    lose_answers,
)
from support.promotion import V1, V2, Site, Stage
from support.rfc2136 import impatient, name, nameserver, relay

__all__ = ["impatient", "name", "nameserver", "relay"]

# -- whole promotions -----------------------------------------------------------------------------


@pytest.fixture
def production(
    make_stage: Callable[..., Stage], nameserver: Nameserver, name: str
) -> Callable[..., Stage]:
    """Make a project whose production name is served by BIND."""

    def make(**changes: Any) -> Stage:
        settings = {
            "dns": "rfc2136",
            "zone": ZONE,
            "record": name,
            "server": nameserver.address,
            "servers": [],
            "key": str(nameserver.key),
            "record_ttl": Duration(1),
        }
        return make_stage(**{**settings, **changes})

    return make


def test_both_servers_show_promotion_and_rollback(
    production: Callable[..., Stage], nameserver: Nameserver, name: str
) -> None:
    """At each step, both servers have the expected record."""
    stage = production()
    stage.promoter().promote("v1")
    assert nameserver.ask(name) == ([V1], 1)
    assert nameserver.ask(name, server=SECONDARY) == ([V1], 1)
    seen = {}

    def look(point: str) -> None:
        answers = [nameserver.ask(name, server=server)[0] for server in (PRIMARY, SECONDARY)]
        seen[point] = answers

    stage.promoter(checkpoint=look).promote("v2")

    assert seen["switch: begun"] == [[V1], [V1]]
    assert seen["switch: moved"][0] == [V2]
    assert seen["verify: begun"] == [[V2], [V2]]
    stage.promoter().rollback()
    assert nameserver.ask(name, server=SECONDARY) == ([V1], 1)


def test_a_long_ttl_is_lowered_on_both_servers(
    production: Callable[..., Stage], nameserver: Nameserver, name: str
) -> None:
    """Both servers have the old address with the short TTL before the switch."""
    nameserver.update(f"update add {name} 2 A 127.9.9.9")
    stage = production()
    seen = {}

    def look(point: str) -> None:
        seen[point] = [nameserver.ask(name, server=each) for each in (PRIMARY, SECONDARY)]

    stage.promoter(checkpoint=look).promote("v1")

    assert seen["lower-ttl: begun"][0] == (["127.9.9.9"], 2)
    assert seen["lower-ttl: done"] == [(["127.9.9.9"], 1)] * 2
    assert nameserver.ask(name) == ([V1], 1)


def test_a_change_by_nsupdate_is_not_undone(
    production: Callable[..., Stage], nameserver: Nameserver, name: str
) -> None:
    """The error shows the record of the other client."""
    stage = production()
    stage.promoter().promote("v1")

    def meddle(point: str) -> None:
        if point == "switch: begun":
            nameserver.update(f"update delete {name} A", f"update add {name} 9 A 127.9.9.9")

    with pytest.raises(PromotionError, match=r"it is A 9s 127\.9\.9\.9 on"):
        stage.promoter(checkpoint=meddle).promote("v2")

    assert nameserver.ask(name) == (["127.9.9.9"], 9)


def test_a_refused_update_undoes_the_promotion(
    production: Callable[..., Stage], nameserver: Nameserver, name: str
) -> None:
    """A key without permission fails at once, and v2 gets its expiry back."""
    stage = production()
    stage.promoter().promote("v1")
    powerless = msgspec.structs.replace(stage.promotion, key=str(nameserver.reader))

    with pytest.raises(PromotionError, match=f"{nameserver.address} answered REFUSED"):
        stage.promoter(promotion=powerless).promote("v2")

    assert nameserver.ask(name)[0] == [V1]
    assert stage.get("v2").expires_at is not None


def test_an_unsigned_response_is_refused(
    production: Callable[..., Stage], nameserver: Nameserver, name: str, relay: Relay
) -> None:
    """Anyone could have sent it, so it proves neither success nor failure."""
    stage = production(server=relay.address, servers=[nameserver.address])
    stage.promoter().promote("v1")
    relay.fault = answer_with(5)

    with pytest.raises(PromotionError, match="is not signed"):
        stage.promoter().promote("v2")

    assert nameserver.ask(name)[0] == [V1]


def test_a_temporary_failure_is_retried(
    production: Callable[..., Stage], nameserver: Nameserver, name: str, relay: Relay
) -> None:
    """SERVFAIL is not a final answer."""
    stage = production(server=relay.address, servers=[nameserver.address])
    failing, count = answer_with(2), itertools.count()
    relay.fault = lambda message, on: (
        failing(message, on) if next(count) in {1, 5, 6} else on(message)
    )

    stage.promoter().promote("v1")

    assert nameserver.ask(name)[0] == [V1]


def test_a_lost_response_does_not_repeat_the_update(
    production: Callable[..., Stage], nameserver: Nameserver, name: str, relay: Relay
) -> None:
    """The next query shows that the update was applied."""
    stage = production(server=relay.address, servers=[nameserver.address])
    stage.promoter().promote("v1")
    relay.fault = lose_answers(1)

    stage.promoter().promote("v2")

    assert nameserver.ask(name)[0] == [V2]


def test_a_silent_server_leaves_both_environments_up(
    production: Callable[..., Stage], nameserver: Nameserver, name: str, relay: Relay
) -> None:
    """The outcome is unknown, so neither may end; the next run undoes the promotion."""
    stage = production(server=relay.address, servers=[nameserver.address])
    stage.promoter().promote("v1")
    promoter = stage.promoter()

    def silence(point: str) -> None:
        if point == "switch: begun":
            relay.fault = lambda *_: None

    promoter.checkpoint = silence
    with pytest.raises(DnsUnavailableError, match="did not answer") as caught:
        promoter.promote("v2")

    assert "Run the same command again" in "".join(caught.value.__notes__)
    assert stage.get("v1").expires_at is None
    assert stage.get("v2").expires_at is None
    relay.fault = None
    stage.abandon()
    with pytest.raises(PromotionError, match="is unchanged"):
        stage.promoter().promote("v2")
    assert nameserver.ask(name)[0] == [V1]
    assert stage.get("v2").expires_at is not None


def test_a_failed_verification_restores_the_record(
    production: Callable[..., Stage], nameserver: Nameserver, name: str, served: dict[str, Site]
) -> None:
    """Both servers get the old record back."""
    stage = production()
    stage.promoter().promote("v1")
    served["v2"].refuses = stage.when_live("v2")

    with pytest.raises(PromotionError, match="503"):
        stage.promoter().promote("v2")

    assert nameserver.ask(name, server=PRIMARY) == ([V1], 1)
    assert nameserver.ask(name, server=SECONDARY) == ([V1], 1)
