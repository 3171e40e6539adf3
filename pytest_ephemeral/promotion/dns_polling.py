"""Change a DNS record and wait for it, with heartbeats in the journal meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, TypeVar

import msgspec

from pytest_ephemeral import providers
from pytest_ephemeral.environments import readiness
from pytest_ephemeral.environments.probes import Probe
from pytest_ephemeral.errors import (
    DnsUnavailableError,
    EnvironmentDiedError,
    PromotionError,
    ReadinessError,
)
from pytest_ephemeral.models import Environment
from pytest_ephemeral.promotion.dns import DnsBackend, DnsRecord, format_records, sort_records
from pytest_ephemeral.promotion.journal import BEAT, Journal

T = TypeVar("T")

#: Seconds for which a name server that does not respond is tried again.
PATIENCE: Final = 60.0
#: Seconds in which all authoritative servers must return the new record.
PROPAGATION: Final = 300.0
#: Seconds between two attempts.
INTERVAL: Final = 0.25


class Times(msgspec.Struct, frozen=True):
    """The clock and the time limits in seconds; tests use others."""

    patience: float = PATIENCE
    propagation: float = PROPAGATION
    monotonic: Callable[[], float] = time.monotonic
    pause: Callable[[float], object] = time.sleep
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


class DnsPoller(msgspec.Struct):
    """Reads and changes a DNS record for a promotion, as long as it owns the run.

    Attributes:
        backend: The DNS backend that serves the name.
        journal: Where heartbeats go; a process that has taken over ends every wait here.
        say: Receives why a name server is asked again, once for each reason.
        times: How time passes.
    """

    backend: DnsBackend
    journal: Journal
    say: Callable[[str], None]
    times: Times = msgspec.field(default_factory=Times)
    _last_heartbeat: float = float("-inf")

    def retry(self, act: Callable[[], T]) -> T:
        """Call a name server, and again while it does not respond.

        Raises:
            DnsUnavailableError: It did not respond in time.
        """
        deadline, told = self.times.monotonic() + self.times.patience, ""
        while True:
            try:
                return act()
            except DnsUnavailableError as error:
                if self.times.monotonic() >= deadline:
                    raise
                if str(error) != told:
                    told = str(error)
                    self.say(f"{told}; asked again for {self.times.patience:g} s")
            self.wait(INTERVAL)

    def move(self, old: Sequence[DnsRecord], new: Sequence[DnsRecord]) -> str:
        """Swap records. When the response was lost, the record is read before trying again.

        Returns:
            The change, for ``wait_for_propagation``.

        Raises:
            DnsError: It was not done, as far as is known.
            SupersededError: Another process has taken over.
        """
        self.heartbeat()

        def act() -> str:
            done = self.backend.read() == sort_records(new)
            return self.backend.swap(new if done else old, new)

        return self.retry(act)

    def wait_for_propagation(self, expected: Sequence[DnsRecord], change: str) -> None:
        """Wait until all authoritative servers return these records.

        Raises:
            PromotionError: Not in time; names the servers and what they return.
        """
        deadline = self.times.monotonic() + self.times.propagation
        while True:
            try:
                behind = self.backend.find_lagging(expected, change)
            except DnsUnavailableError as error:
                behind = str(error)
            if not behind:
                return
            if self.times.monotonic() >= deadline:
                raise PromotionError(
                    f"after {self.times.propagation:g} s, not all authoritative servers return "
                    f"{format_records(expected)}: {behind}"
                )
            self.wait(INTERVAL)

    def wait_for_probes(
        self, probes: Sequence[Probe], environment: Environment, where: str, timeout: float
    ) -> None:
        """Wait until all probes succeed at once.

        Args:
            probes: The probes.
            environment: What has to keep running.
            where: What is probed, for people.
            timeout: Seconds.

        Raises:
            EnvironmentDiedError: It has stopped.
            ReadinessError: Not in time; includes the last results.
        """
        deadline = self.times.monotonic() + timeout
        while True:
            check_alive(environment)
            seen = [what for probe in probes if (what := probe.look(readiness.ONE_LOOK))]
            if not seen:
                return
            if self.times.monotonic() >= deadline:
                raise ReadinessError(
                    f"{where} did not pass its checks within {timeout:g} s: {'; '.join(seen)}"
                )
            self.wait(INTERVAL)

    def wait(self, seconds: float) -> None:
        """Wait, with heartbeats."""
        deadline = self.times.monotonic() + seconds
        while True:
            if self.times.monotonic() - self._last_heartbeat >= BEAT:
                self.heartbeat()
            if (left := deadline - self.times.monotonic()) <= 0:
                return
            self.times.pause(min(left, BEAT))

    def heartbeat(self) -> None:
        """Send a heartbeat; raise if another process has taken over."""
        self.journal.heartbeat()
        self._last_heartbeat = self.times.monotonic()


def check_alive(environment: Environment) -> None:
    """Raise if an environment is not running.

    Raises:
        EnvironmentDiedError: It is not; says why.
    """
    if reason := providers.load(environment.provider).status(environment).stop_reason():
        raise EnvironmentDiedError(f"{environment.id} stopped by itself: {reason}")
