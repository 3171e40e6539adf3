"""A DNS backend whose servers are late or lose responses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_ephemeral.errors import NameChangedError


def fake_times(pause: Callable[[float], object] = lambda _: None) -> Any:
    """Times with a clock that advances only by its own pauses."""
    from pytest_ephemeral.promotion.dns_polling import Times

    clock = [0.0]

    def passing(seconds: float) -> None:
        clock[0] += seconds
        pause(seconds)

    return Times(patience=2.0, propagation=5.0, monotonic=lambda: clock[0], pause=passing)


class Zone:
    """A name in memory, whose servers may be late or lose responses."""

    def __init__(self, *, ttl: int, behind: int = 0, stuck: str = "", losing: int = 0) -> None:
        from pytest_ephemeral.promotion.dns import DnsRecord

        self.first = self.records = [DnsRecord(kind="A", ttl=ttl, values=["127.9.9.9"])]
        self.swaps: list[Any] = []
        self.behind, self.stuck, self.losing = behind, stuck, losing

    def read(self) -> Any:
        return self.records

    def records_for(self, host: str, ttl: int, now: Any) -> Any:
        from pytest_ephemeral.promotion.dns import DnsRecord

        return [DnsRecord(kind="A", ttl=ttl, values=[host])]

    def swap(self, old: Any, new: Any) -> str:
        from pytest_ephemeral.errors import DnsUnavailableError

        if self.records != list(old):
            raise NameChangedError("changed")
        if self.records != list(new):
            self.swaps.append((list(old), list(new)))
        self.records = list(new)
        if self.losing:
            self.losing -= 1
            raise DnsUnavailableError("no answer")
        return ""

    def find_lagging(self, expected: Any, change: str) -> str:
        if expected[0].values == [self.stuck]:
            return "ns2 says nothing of it"
        self.behind = max(0, self.behind - 1)
        return "ns2" if self.behind else ""

    def addresses(self) -> Any:
        return [value for record in self.records for value in record.values]
