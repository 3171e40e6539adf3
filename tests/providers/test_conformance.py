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


class TestSelfGuarding(OwnerConformance, BakerConformance, PartsConformance, ProviderConformance):
    """Providers whose environments end by themselves."""

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
