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
    """Yield one provider's bench, with its platform running while it is used."""
    found = benches.load(name)
    if why := found.unavailable():
        pytest.skip(f"without {why}")
    with getattr(found, "platform", nullcontext)():
        yield found


def test_every_provider_is_in_a_test_class() -> None:
    """A provider without rollback, several parts or its own guard needs another test class."""
    assert set(benches.TABLE) == PARTS | OWNERS | ROLLBACK


class TestOneContainer(RollbackConformance, BakerConformance, ProviderConformance):
    """Providers of one container, with rollback; an engine is started once for all tests."""

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
    """Providers of several containers, with rollback."""

    @pytest.fixture(scope="class", params=sorted((PARTS & ROLLBACK) - OWNERS))
    @classmethod
    def bench(cls, request: pytest.FixtureRequest) -> Iterator[Bench]:
        yield from use(request.param)


class TestRootless(ProviderFixtures):
    """Tests of what depends on an engine's rights: ports, processes, logs and storage.

    The rest is the same program, which passes the whole suite as root. A rootless engine copies
    the image for each container, which takes seconds: hence only a few tests, besides one
    environment's whole life in ``tests/containers/test_engine_addresses.py``.
    """

    test_a_crash_after_startup_is_reported = (
        ProviderConformance.test_a_crash_after_startup_is_reported
    )
    test_the_log_between_two_marks_is_exact = (
        ProviderConformance.test_the_log_between_two_marks_is_exact
    )
    test_destroy_leaves_nothing = ProviderConformance.test_destroy_leaves_nothing

    @pytest.fixture(scope="class", params=[benches.ROOTLESS])
    @classmethod
    def bench(cls, request: pytest.FixtureRequest) -> Iterator[Bench]:
        yield from use(request.param)


#: Tests that need nothing inside a machine: it boots, because a resume would take longer.
MACHINE_NOT_NEEDED = {
    "test_a_starting_environment_can_be_destroyed",
    "test_destroy_needs_only_the_first_record",
    "test_destroying_twice_is_harmless",
    "test_an_environment_ends_at_its_expiry",
    "test_list_owned_returns_the_labels",
    "test_an_environment_can_be_pickled",
    "test_the_expiry_can_be_extended_or_removed",
    "test_a_kept_environment_still_expires",
    "test_a_destroyed_environment_is_reported_as_gone",
    "test_a_listed_environment_can_be_swept",
}


class TestSelfGuarding(OwnerConformance, BakerConformance, PartsConformance, ProviderConformance):
    """Providers whose environments end by themselves."""

    @pytest.fixture(autouse=True)
    def _boot(self, bench: Bench, request: pytest.FixtureRequest) -> None:
        """Let the machines of qemu boot if this test needs nothing inside them."""
        if hasattr(bench, "cold"):
            bench.cold = request.function.__name__ in MACHINE_NOT_NEEDED

    @pytest.fixture(scope="class", params=sorted(OWNERS))
    @classmethod
    def bench(cls, request: pytest.FixtureRequest) -> Iterator[Bench]:
        yield from use(request.param)


class TestRollback(RollbackConformance, ProviderFixtures):
    """Providers whose environments end by themselves, with rollback."""

    @pytest.fixture(scope="class", params=sorted(ROLLBACK & OWNERS))
    @classmethod
    def bench(cls, request: pytest.FixtureRequest) -> Iterator[Bench]:
        yield from use(request.param)
