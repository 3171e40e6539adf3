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
ROLLBACK = set(benches.WITH_ROLLBACK)


def use(name: str) -> Iterator[Bench]:
    """One provider's bench, with whatever platform it brings along for as long as it is used."""
    found = benches.load(name)
    if why := found.unavailable():
        pytest.skip(f"without {why}")
    with getattr(found, "platform", nullcontext)():
        yield found


def test_every_provider_is_in_a_class() -> None:
    """One that is neither put back, nor of several parts, nor guards itself needs a class more."""
    assert set(benches.TABLE) == PARTS | OWNERS | ROLLBACK


class TestOneContainer(RollbackConformance, BakerConformance, ProviderConformance):
    """Those whose environments can be put back as well: an engine is started once for all."""

    @pytest.fixture(scope="class", params=sorted(ROLLBACK - PARTS))
    @classmethod
    def bench(cls, request: pytest.FixtureRequest) -> Iterator[Bench]:
        yield from use(request.param)


class TestSeveralProcesses(BakerConformance, PartsConformance, ProviderConformance):
    """Providers whose environments have several parts, and need a watchdog."""

    @pytest.fixture(scope="class", params=sorted(PARTS - OWNERS - ROLLBACK))
    @classmethod
    def bench(cls, request: pytest.FixtureRequest) -> Iterator[Bench]:
        yield from use(request.param)


class TestSeveralContainers(
    RollbackConformance, BakerConformance, PartsConformance, ProviderConformance
):
    """Those whose environments can be put back as well."""

    @pytest.fixture(scope="class", params=sorted((PARTS & ROLLBACK) - OWNERS))
    @classmethod
    def bench(cls, request: pytest.FixtureRequest) -> Iterator[Bench]:
        yield from use(request.param)


class TestRootless(ProviderFixtures):
    """What takes rights of an engine, on one without: ports, processes, logs and storage.

    All else is the same program, which has the whole suite to pass as root. There each container
    is a copy of its image, which takes seconds: hence a few tests, beside one environment's whole
    life in ``tests/containers/test_engine_addresses.py``.
    """

    test_a_later_crash_is_reported = ProviderConformance.test_a_later_crash_is_reported
    test_logs_between_marks = ProviderConformance.test_logs_between_marks
    test_destroying_leaves_nothing = ProviderConformance.test_destroying_leaves_nothing

    @pytest.fixture(scope="class", params=[benches.ROOTLESS])
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
    """Providers whose environments end by themselves, and can be put back to their baseline."""

    @pytest.fixture(scope="class", params=sorted(ROLLBACK & OWNERS))
    @classmethod
    def bench(cls, request: pytest.FixtureRequest) -> Iterator[Bench]:
        yield from use(request.param)
