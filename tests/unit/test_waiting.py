"""Waiting and retrying: how often, how long, and what ends it, on a clock of the test's own."""

from __future__ import annotations

import pytest

from pytest_ephemeral.providers.waiting import JITTER, Clock, retry, wait_until


class FakeTime:
    """A clock on which sleeping takes no time, and is written down."""

    def __init__(self) -> None:
        self.time = 0.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.pauses.append(seconds)

    def clock(self) -> Clock:
        return Clock(lambda: self.time, self.sleep)


def test_it_looks_until_it_sees_something() -> None:
    """What it saw is returned; the pauses are as long as was asked, and a part by chance."""
    fake, seen = FakeTime(), iter(["", "", "there"])
    assert wait_until(lambda: next(seen), within=60, every=2, clock=fake.clock()) == "there"
    assert len(fake.pauses) == 2
    assert all(2 <= pause <= 2 * (1 + JITTER) for pause in fake.pauses)


def test_it_gives_up_when_the_time_is_over() -> None:
    """And returns what it saw last; with no time at all, it still looks once."""
    fake, looks = FakeTime(), []
    assert not wait_until(lambda: bool(looks.append(1)), within=10, every=2, clock=fake.clock())
    assert 10 <= fake.time <= 10 + 2 * (1 + JITTER)
    assert wait_until(lambda: "there", within=0, every=2, clock=fake.clock()) == "there"


def test_pauses_double_up_to_the_longest() -> None:
    """So what is throttled is asked less and less often."""
    fake = FakeTime()
    wait_until(lambda: False, within=60, every=1, longest=8, clock=fake.clock())
    for pause, due in zip(fake.pauses, [1, 2, 4, 8, 8, 8], strict=False):
        assert due <= pause <= due * (1 + JITTER)


def test_only_what_may_pass_is_tried_again() -> None:
    """Any other error is raised at once, and the last one when the time is over."""
    fake, calls = FakeTime(), []

    def act() -> str:
        calls.append(fake.time)
        raise (KeyError if len(calls) < 3 else ValueError)("no")

    def is_key_error(error: Exception) -> bool:
        return isinstance(error, KeyError)

    with pytest.raises(ValueError, match="no"):
        retry(act, when=is_key_error, within=60, every=1, clock=fake.clock())
    assert len(calls) == 3
    calls.clear()
    with pytest.raises(KeyError):
        retry(act, when=is_key_error, within=0, every=1, clock=fake.clock())
    assert len(calls) == 1
