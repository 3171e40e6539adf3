"""Moving a name and waiting for it, with signs of life meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, TypeVar

import msgspec

from pytest_ephemeral import providers
from pytest_ephemeral.environments import readiness
from pytest_ephemeral.environments.readiness import Probe
from pytest_ephemeral.errors import (
    DnsUnavailableError,
    EnvironmentDiedError,
    PromotionError,
    ReadinessError,
)
from pytest_ephemeral.models import Environment
from pytest_ephemeral.promotion.dns import Backend, Record, arranged, shown
from pytest_ephemeral.promotion.journal import BEAT, Journal

T = TypeVar("T")

#: Seconds for which a name server that does not answer is asked again.
PATIENCE: Final = 60.0
#: Seconds in which all authoritative servers must have what one of them has.
PROPAGATION: Final = 300.0
#: Seconds between two looks.
INTERVAL: Final = 0.25


class Times(msgspec.Struct, frozen=True):
    """How time passes, and how long things may take in seconds; other ones in tests."""

    patience: float = PATIENCE
    propagation: float = PROPAGATION
    monotonic: Callable[[], float] = time.monotonic
    pause: Callable[[float], object] = time.sleep
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


class Mover(msgspec.Struct):
    """What the steps of a promotion do with a name, for as long as it is theirs to do.

    Attributes:
        backend: What serves the name.
        journal: Where signs of life are given; whoever has taken over makes every wait end.
        times: How time passes.
    """

    backend: Backend
    journal: Journal
    times: Times = msgspec.field(default_factory=Times)
    _last_beat: float = float("-inf")

    def patiently(self, act: Callable[[], T]) -> T:
        """Ask a name server, and ask again when it does not answer.

        Raises:
            DnsUnavailableError: It did not in all this time.
        """
        deadline = self.times.monotonic() + self.times.patience
        while True:
            try:
                return act()
            except DnsUnavailableError:
                if self.times.monotonic() >= deadline:
                    raise
            self.wait(INTERVAL)

    def move(self, old: Sequence[Record], new: Sequence[Record]) -> str:
        """Swap. A server that did not answer is asked again, having looked what it did.

        Returns:
            What ``settle`` needs.

        Raises:
            DnsError: It was not done, as far as can be told.
            SupersededError: It is no longer for this process to do.
        """
        self.beat()

        def act() -> str:
            done = self.backend.read() == arranged(new)
            return self.backend.swap(new if done else old, new)

        return self.patiently(act)

    def settle(self, expected: Sequence[Record], change: str) -> None:
        """Wait until all authoritative servers answer with it.

        Raises:
            PromotionError: Not in time; says which do not, and what they say.
        """
        deadline = self.times.monotonic() + self.times.propagation
        while True:
            try:
                behind = self.backend.lagging(expected, change)
            except DnsUnavailableError as error:
                behind = str(error)
            if not behind:
                return
            if self.times.monotonic() >= deadline:
                raise PromotionError(
                    f"after {self.times.propagation:g} s, not all authoritative servers answer "
                    f"with {shown(expected)}: {behind}"
                )
            self.wait(INTERVAL)

    def until_all(
        self, probes: Sequence[Probe], environment: Environment, where: str, timeout: float
    ) -> None:
        """Wait until all probes succeed at once.

        Args:
            probes: What to look at.
            environment: What has to run all the while.
            where: What is looked at, for people.
            timeout: Seconds.

        Raises:
            EnvironmentDiedError: It has stopped.
            ReadinessError: Not in time; says what was last seen.
        """
        deadline = self.times.monotonic() + timeout
        while True:
            check_alive(environment)
            seen = [what for probe in probes if (what := probe.look(readiness.ONE_LOOK))]
            if not seen:
                return
            if self.times.monotonic() >= deadline:
                raise ReadinessError(
                    f"{where} was not as it should be within {timeout:g} s: {'; '.join(seen)}"
                )
            self.wait(INTERVAL)

    def wait(self, seconds: float) -> None:
        """Wait, and give signs of life."""
        deadline = self.times.monotonic() + seconds
        while True:
            if self.times.monotonic() - self._last_beat >= BEAT:
                self.beat()
            if (left := deadline - self.times.monotonic()) <= 0:
                return
            self.times.pause(min(left, BEAT))

    def beat(self) -> None:
        """Give a sign of life; raise if somebody has taken over."""
        self.journal.beat()
        self._last_beat = self.times.monotonic()


def check_alive(environment: Environment) -> None:
    """Raise if an environment does not run.

    Raises:
        EnvironmentDiedError: It does not; says why.
    """
    status = providers.load(environment.provider).status(environment)
    if status.state != "running":
        detail = status.detail or "nothing of it is there any more"
        raise EnvironmentDiedError(f"{environment.id} has stopped by itself: {detail}")
