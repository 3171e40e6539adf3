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
    """After a definite refusal, the cleanup does not repeat the request, and launches nothing."""
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
    """The call takes effect but its answer is lost; the retry does not repeat the effect."""
    bench.bake()
    bench.account.fault(action, kind="lost")
    environment = bench.lifecycle.bring_up(bench.template()).environment
    assert len([one for one in bench.account.left() if one.startswith("i-")]) == 1
    bench.lifecycle.destroy(environment)


def test_throttled_polling_fails_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Launch and destroy go on while polls are throttled, and end soon afterwards.

    boto3 alone would slow down all calls of its client, and poll again after half a minute.
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
    """It can't be parsed. The retry does not repeat the call's effect."""
    bench.bake()
    bench.account.fault(action, kind="cut")
    environment = bench.lifecycle.bring_up(bench.template()).environment
    assert len([one for one in bench.account.left() if one.startswith("i-")]) == 1
    bench.lifecycle.destroy(environment)


def test_persistent_truncation_is_reported_in_one_line(bench: Bench) -> None:
    """It is reported after some retries. An instance that was launched is terminated."""
    bench.bake()
    bench.account.fault("RunInstances", kind="cut", times=4)
    bench.account.calls()
    with pytest.raises(EphemeralError, match="answer to RunInstances is truncated") as caught:
        bench.lifecycle.bring_up(bench.template())
    assert len(str(caught.value).splitlines()) == 1
    assert bench.account.calls().count("ec2:TerminateInstances") == 1
    assert bench.account.left() == []
