"""All providers pass the conformance suite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import bench as benches
import pytest

from pytest_ephemeral.testing import (
    BakerConformance,
    Bench,
    OwnerConformance,
    PartsConformance,
    ProviderConformance,
    ProviderFixtures,
    RollbackConformance,
)

PARTS = set(benches.with_parts())
OWNERS = set(benches.SELF_GUARDING)


def use(name: str) -> Iterator[Bench]:
    """One provider's bench, with whatever platform it brings along for as long as it is used."""
    found = benches.load(name)
    if why := found.unavailable():
        pytest.skip(f"without {why}")
    with getattr(found, "platform", nullcontext)():
        yield found


class TestOneProcess(BakerConformance, ProviderConformance):
    """Providers whose environments are one thing."""

    @pytest.fixture(scope="class", params=sorted(set(benches.TABLE) - PARTS))
    @classmethod
    def bench(cls, request: pytest.FixtureRequest) -> Iterator[Bench]:
        yield from use(request.param)


class TestSeveralProcesses(BakerConformance, PartsConformance, ProviderConformance):
    """Providers whose environments have several parts, and need a watchdog."""

    @pytest.fixture(scope="class", params=sorted(PARTS - OWNERS))
    @classmethod
    def bench(cls, request: pytest.FixtureRequest) -> Iterator[Bench]:
        yield from use(request.param)


#: Tests that ask nothing of what is in a machine: it need not be resumed, which would take longer.
UNASKED = {
    "test_destroying_at_once",
    "test_destroying_by_its_record_alone",
    "test_destroying_twice_is_no_error",
    "test_it_ends_at_its_expiry",
    "test_it_is_listed_with_its_labels",
    "test_it_is_plain_data",
    "test_its_expiry_can_be_moved",
    "test_kept_it_still_expires",
    "test_what_is_gone_says_so",
    "test_what_is_listed_can_be_swept",
}


class TestSelfGuarding(OwnerConformance, BakerConformance, PartsConformance, ProviderConformance):
    """Providers whose environments end by themselves."""

    @pytest.fixture(autouse=True)
    def _boot(self, bench: Bench, request: pytest.FixtureRequest) -> None:
        """Tell the bench of machines whether this test needs what is in them."""
        if hasattr(bench, "cold"):
            bench.cold = request.function.__name__ in UNASKED

    @pytest.fixture(scope="class", params=sorted(OWNERS))
    @classmethod
    def bench(cls, request: pytest.FixtureRequest) -> Iterator[Bench]:
        yield from use(request.param)


class TestRollback(RollbackConformance, ProviderFixtures):
    """Providers whose environments can be put back to their baseline."""

    @pytest.fixture(scope="class", params=sorted(benches.WITH_ROLLBACK))
    @classmethod
    def bench(cls, request: pytest.FixtureRequest) -> Iterator[Bench]:
        yield from use(request.param)
