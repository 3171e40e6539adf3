"""Promotion with cached DNS records and slow name servers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_ephemeral.durations import Duration
from pytest_ephemeral.errors import PromotionError
from support.late_zone import Zone, fake_times
from support.promotion import V1, Site, Stage


def test_a_long_ttl_is_lowered_first(make_stage: Callable[..., Stage]) -> None:
    """The switch waits until the old TTL has passed."""
    stage = make_stage(record_ttl=Duration(1))
    zone = Zone(ttl=3)
    waited: list[float] = []
    times = fake_times(pause=waited.append)

    stage.promoter(backend=zone, times=times).promote("v1")

    assert [(old[0].ttl, new[0].ttl, new[0].values) for old, new in zone.swaps] == [
        (3, 1, ["127.9.9.9"]),
        (1, 1, [V1]),
    ]
    assert sum(waited) >= 3


def test_a_failure_restores_the_long_ttl(
    make_stage: Callable[..., Stage], served: dict[str, Site]
) -> None:
    """The record is exactly the old one."""
    stage = make_stage()
    zone = Zone(ttl=3)
    served["v1"].healthy = False

    with pytest.raises(PromotionError):
        stage.promoter(backend=zone, times=fake_times()).promote("v1")

    assert zone.records == zone.first


def test_a_slow_name_server_is_waited_for(make_stage: Callable[..., Stage]) -> None:
    """Verification begins when all authoritative servers answer with the new record."""
    stage = make_stage()
    zone = Zone(ttl=1, behind=5)

    stage.promoter(backend=zone, times=fake_times()).promote("v1")

    assert zone.behind == 0


def test_a_name_server_that_never_updates_undoes_the_promotion(
    make_stage: Callable[..., Stage],
) -> None:
    """Clients would get different records from different servers."""
    stage = make_stage()
    zone = Zone(ttl=1, stuck=V1)

    with pytest.raises(PromotionError, match="ns2 says nothing of it"):
        stage.promoter(backend=zone, times=fake_times()).promote("v1")

    assert zone.records == zone.first


def test_a_lost_response_does_not_repeat_the_update(
    make_stage: Callable[..., Stage],
) -> None:
    """The next query shows that the update was applied."""
    stage = make_stage()
    zone = Zone(ttl=1, losing=1)

    stage.promoter(backend=zone, times=fake_times()).promote("v1")

    assert zone.records[0].values == [V1]
