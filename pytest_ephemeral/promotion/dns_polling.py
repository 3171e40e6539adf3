"""Change DNS records and wait for the effect, with heartbeats in the journal."""

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

#: Seconds of retries while a name server does not respond.
PATIENCE: Final = 60.0
#: The time-out in seconds until all authoritative servers return the new records.
PROPAGATION: Final = 300.0
#: Seconds between two attempts.
INTERVAL: Final = 0.25


class Times(msgspec.Struct, frozen=True):
    """The clock and the time limits in seconds, which tests replace."""

    patience: float = PATIENCE
    propagation: float = PROPAGATION
    monotonic: Callable[[], float] = time.monotonic
    pause: Callable[[float], object] = time.sleep
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


class DnsPoller(msgspec.Struct):
    """Reads and changes DNS records for a promotion.

    Every method raises a SupersededError if another process has taken over the promotion.

    Attributes:
        backend: The DNS backend of the name.
        journal: Receives heartbeats.
        say: Receives the reason of a retry, once for each reason.
        times: The clock and the time limits.
    """

    backend: DnsBackend
    journal: Journal
    say: Callable[[str], None]
    times: Times = msgspec.field(default_factory=Times)
    _last_heartbeat: float = float("-inf")

    def retry(self, act: Callable[[], T]) -> T:
        """Call a name server, with retries while it does not respond.

        Raises:
            DnsUnavailableError: It did not respond within ``Times.patience``.
        """
        deadline, reported = self.times.monotonic() + self.times.patience, ""
        while True:
            try:
                return act()
            except DnsUnavailableError as error:
                if self.times.monotonic() >= deadline:
                    raise
                if str(error) != reported:
                    reported = str(error)
                    self.say(f"{reported}; asked again for {self.times.patience:g} s")
            self.wait(INTERVAL)

    def move(self, old: Sequence[DnsRecord], new: Sequence[DnsRecord]) -> str:
        """Replace records. Each retry first reads them, because a response may have been lost.

        Returns:
            The id of the change, for ``wait_for_propagation``.

        Raises:
            DnsError: The change failed, or its result is unknown.
            SupersededError: Another process has taken over.
        """
        self.heartbeat()

        def act() -> str:
            done = self.backend.read() == sort_records(new)
            return self.backend.swap(new if done else old, new)

        return self.retry(act)

    def wait_for_propagation(self, expected: Sequence[DnsRecord], change: str) -> None:
        """Wait until all authoritative servers return the expected records.

        Raises:
            PromotionError: The time-out; the message has the servers and their answers.
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
        """Wait until all probes succeed in the same round.

        Args:
            probes: The probes.
            environment: The environment, which has to keep running.
            where: The address or name in messages.
            timeout: The time-out in seconds.

        Raises:
            EnvironmentDiedError: The environment has stopped.
            ReadinessError: The time-out; the message has the last results.
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
        """Wait for a number of seconds, with heartbeats."""
        deadline = self.times.monotonic() + seconds
        while True:
            if self.times.monotonic() - self._last_heartbeat >= BEAT:
                self.heartbeat()
            if (left := deadline - self.times.monotonic()) <= 0:
                return
            self.times.pause(min(left, BEAT))

    def heartbeat(self) -> None:
        """Write a heartbeat to the journal."""
        self.journal.heartbeat()
        self._last_heartbeat = self.times.monotonic()


def check_alive(environment: Environment) -> None:
    """Check that an environment runs.

    Raises:
        EnvironmentDiedError: It has stopped; the message has the reason.
    """
    if reason := providers.load(environment.provider).status(environment).stop_reason():
        raise EnvironmentDiedError(f"{environment.id} stopped by itself: {reason}")
