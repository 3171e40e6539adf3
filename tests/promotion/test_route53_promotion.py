"""Promotions with Route 53."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_ephemeral.durations import Duration
from pytest_ephemeral.errors import (
    PromotionError,
)
from pytest_ephemeral.promotion.dns import DnsRecord
from pytest_ephemeral.promotion.promoter import Promoter
from support.promotion import V1, V2, Site, Stage
from support.route53 import StrictRoute53
from support.route53_zone import BALANCED, NAME, ZONE, backend, make_backend, strict

__all__ = ["backend", "make_backend", "strict"]


def test_promotion_and_rollback_update_the_record(
    make_stage: Callable[..., Stage], strict: StrictRoute53, make_backend: Callable[..., Any]
) -> None:
    """The TTL is lowered before the switch, and temporary errors are retried."""
    stage = make_stage(dns="route53", zone=ZONE, record=NAME, record_ttl=Duration(1))
    backend = make_backend()
    backend.swap([], [DnsRecord(kind="A", ttl=2, values=["127.9.9.9"])])
    strict.failing = ["PriorRequestNotComplete", "Throttling"]  # both are retried

    entry = stage.promoter(backend=backend).promote("v1")
    assert entry is not None
    assert backend.read() == [DnsRecord(kind="A", ttl=1, values=[V1])]
    stage.promoter(backend=backend).promote("v2")
    assert backend.read() == [DnsRecord(kind="A", ttl=1, values=[V2])]
    stage.promoter(backend=backend).rollback()
    assert backend.read() == [DnsRecord(kind="A", ttl=1, values=[V1])]
    assert all(set(batch) <= {"DELETE", "CREATE"} for batch in strict.batches)


def test_a_promotion_resumes_without_the_change_id(
    make_stage: Callable[..., Stage],
    strict: StrictRoute53,
    make_backend: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a kill right after the batch, an equal batch gives a new id to wait for."""
    stage = make_stage(dns="route53", zone=ZONE, record=NAME, record_ttl=Duration(1))

    class Dead(BaseException):
        pass

    def die(point: str) -> None:
        if point == "switch: moved":
            raise Dead

    monkeypatch.setattr(Promoter, "_undo_after", lambda *_: None)  # a killed process undoes nothing
    with pytest.raises(Dead):
        stage.promoter(backend=make_backend(), checkpoint=die).promote("v1")
    stage.abandon()

    stage.promoter(backend=make_backend()).promote("v1")

    assert strict.batches == [["CREATE"], ["DELETE", "CREATE"]]


def test_a_failed_verification_restores_the_record(
    make_stage: Callable[..., Stage], make_backend: Callable[..., Any], served: dict[str, Site]
) -> None:
    """The restored record is equal in all parts."""
    stage = make_stage(dns="route53", zone=ZONE, record=NAME, record_ttl=Duration(1))
    backend = make_backend()
    backend.swap([], [BALANCED])
    served["v1"].refuses = lambda asked: asked == NAME and backend.read() != [BALANCED]

    with pytest.raises(PromotionError, match="503"):
        stage.promoter(backend=backend).promote("v1")

    assert backend.read() == [BALANCED]
