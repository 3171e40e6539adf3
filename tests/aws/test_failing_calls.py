"""Calls that AWS refuses, throttles, or answers only in part."""

from __future__ import annotations

import time
from functools import partial

import pytest

from aws.conftest import Bench
from pytest_ephemeral.errors import (
    EphemeralError,
    LaunchError,
)
from pytest_ephemeral.providers.ec2 import instance_watcher


@pytest.mark.parametrize(
    ("code", "attempts"), [("VcpuLimitExceeded", 2), ("InvalidParameterValue", 1)]
)
def test_a_refused_request_is_not_sent_again(bench: Bench, code: str, attempts: int) -> None:
    """Cleaning up after a definite refusal launches nothing: the request is forgotten."""
    bench.bake()
    bench.account.fault("RunInstances", code, times=attempts)
    bench.account.calls()
    with pytest.raises(LaunchError, match=code):
        bench.lifecycle.bring_up(bench.template())
    assert bench.account.calls().count("ec2:RunInstances") == attempts
    assert bench.account.left() == []


@pytest.mark.parametrize(
    "action", ["CreateSecurityGroup", "AuthorizeSecurityGroupIngress", "RunInstances"]
)
def test_a_lost_response_creates_no_duplicates(bench: Bench, action: str) -> None:
    """What was done without our hearing of it is not done again."""
    bench.bake()
    bench.account.fault(action, kind="lost")
    environment = bench.lifecycle.bring_up(bench.template()).environment
    assert len([one for one in bench.account.left() if one.startswith("i-")]) == 1
    bench.lifecycle.destroy(environment)


def test_throttled_polling_fails_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """While no look gets through, bringing up and destroying go on; and soon after it, they end.

    boto3 by itself would slow down all calls of its client, and look again after half a minute.
    """
    monkeypatch.setattr(instance_watcher, "LONGEST_INTERVAL", 0.3)
    bench.bake()
    throttled = partial(
        bench.account.fault, "DescribeInstances", "RequestLimitExceeded", kind="throttle"
    )
    throttled(times=3)
    environment = bench.lifecycle.bring_up(bench.template()).environment
    throttled(times=8)
    started = time.monotonic()
    bench.lifecycle.destroy(environment)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    "action", ["CreateSecurityGroup", "RunInstances", "DescribeInstances", "TerminateInstances"]
)
def test_a_truncated_response_is_requested_again(bench: Bench, action: str) -> None:
    """It can't be parsed: what was done is not done twice."""
    bench.bake()
    bench.account.fault(action, kind="cut")
    environment = bench.lifecycle.bring_up(bench.template()).environment
    assert len([one for one in bench.account.left() if one.startswith("i-")]) == 1
    bench.lifecycle.destroy(environment)


def test_persistent_truncation_is_reported_in_one_line(bench: Bench) -> None:
    """After some tries; and what was launched all the same is found by its request, and ends."""
    bench.bake()
    bench.account.fault("RunInstances", kind="cut", times=4)
    bench.account.calls()
    with pytest.raises(EphemeralError, match="answer to RunInstances is truncated") as caught:
        bench.lifecycle.bring_up(bench.template())
    assert len(str(caught.value).splitlines()) == 1
    assert bench.account.calls().count("ec2:TerminateInstances") == 1
    assert bench.account.left() == []
