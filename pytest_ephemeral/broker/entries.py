"""What the broker knows of each environment, and who brings them up and ends them for it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, Protocol

import msgspec

from pytest_ephemeral.broker.protocol import Key
from pytest_ephemeral.errors import EphemeralError, LaunchError
from pytest_ephemeral.models import Environment, State


class Ending(NamedTuple):
    """What became of an environment.

    Attributes:
        state: ``destroyed``, ``kept``, ``standby``, ``attached`` or ``leaked``.
        seconds: How long ending it took.
        detail: What remains of it, when it leaked.
    """

    state: State
    seconds: float = 0.0
    detail: str = ""


class Backend(Protocol):
    """Brings environments up and ends them, for a broker. Called from the broker's threads."""

    def check(self, template: str, *, rolled_back: bool) -> None:
        """See whether what a template runs on is there.

        Args:
            template: Its name.
            rolled_back: Whether its environments are to be put back to their baseline.

        Raises:
            EphemeralError: It is not, or the template can't be right.
        """

    def spares(self, template: str, /) -> int:
        """How many of a template are made ready ahead of the tests, if more than of others."""

    def bring_up(self, key: Key) -> tuple[Environment, dict[str, float]]:
        """Bring one up: it is ready, and how many seconds each phase took."""

    def roll_back(self, environment: Environment) -> tuple[Environment, float]:
        """Put one back to its baseline: it is ready again, and how many seconds that took.

        Raises:
            EphemeralError: It could not be, and can't be used any more.
        """

    def exit_reason(self, environment: Environment) -> str:
        """How it has stopped by itself, with its last lines; empty while it runs."""

    def mark(self, environment: Environment) -> str:
        """Where its log ends now."""

    def logs(self, environment: Environment, since: str | None) -> str:
        """What it has printed since a mark."""

    def keeps(self, environment: Environment, *, failed: bool) -> bool:
        """Whether it is left up, by whether a test that used it failed."""

    def end(
        self, environment: Environment, *, failed: bool, died: bool, accepted: Callable[[], None]
    ) -> Ending:
        """Save its logs, and destroy or keep it.

        Never raises: what went wrong is part of how it ended.

        Args:
            environment: Which.
            failed: Whether a test that used it failed.
            died: Whether it has stopped by itself.
            accepted: Called once the platform has agreed to remove it, so that what is left is
                only to wait for.
        """

    def leave(self, environment: Environment) -> None:
        """Tell that an environment's removal goes on in the background."""

    def cancel(self) -> None:
        """Stop waiting for what is still coming up: nobody wants it any more."""


class Entry(msgspec.Struct, eq=False):
    """One environment, from being planned to its end.

    Attributes:
        tests: The selected tests that need it and have not finished.
        planned: Whether it was known beforehand who needs it.
        rollbacks: How often it was put back to its baseline.
        stuck: Whether it could not be put back.
        lost: How it had stopped by itself before it was put back, if no test's report says so.
        leases: How often each client holds it.
        used: Whether a test ever had it.
        seen: Whether it was looked at for a lease, which begins with its mark.
        problem: Why it did not come up, or how it died.
        error: The kind of error that this is.
        told: Whether a test's report has the problem in full.
        failed: Whether a test that used it failed.
        counts: How many tests that used it passed, failed and were skipped.
        accepted: Whether the platform has agreed to remove it.
        changing: Held while it is put back; its end waits for that.
        detail: What remains of it, when it leaked.
    """

    key: Key
    tests: set[str] = msgspec.field(default_factory=set)
    planned: bool = True
    state: State = "planned"
    environment: Environment | None = None
    seconds: dict[str, float] = msgspec.field(default_factory=dict)
    rollbacks: int = 0
    stuck: bool = False
    lost: str = ""
    leases: Counter[str] = msgspec.field(default_factory=Counter)
    used: bool = False
    seen: bool = False
    problem: str = ""
    error: type[EphemeralError] = LaunchError
    told: bool = False
    failed: bool = False
    counts: Counter[str] = msgspec.field(default_factory=Counter)
    accepted: bool = False
    changing: threading.Lock = msgspec.field(default_factory=threading.Lock)
    detail: str = ""

    def roll_back(self, backend: Backend) -> None:
        """Put it back to its baseline, also if it has stopped by itself. That is not forgotten.

        Raises:
            EphemeralError: It could not be, now or before.
        """
        if self.environment is None or self.stuck or self.is_over():
            raise EphemeralError(self.problem or "the run is ending: it is being destroyed")
        if not self.told:
            self.lost = self.lost or self.problem
        try:
            self.environment, seconds = backend.roll_back(self.environment)
        except EphemeralError as error:
            self.stuck, self.problem, self.told = True, str(error), False
            raise
        self.problem, self.told = "", False
        self.seconds["rollback"] = self.seconds.get("rollback", 0.0) + seconds
        self.rollbacks += 1

    def count(self, outcome: str) -> None:
        """One more test that used it has come out."""
        self.counts[outcome] += 1
        self.failed = self.failed or outcome == "failed"

    def finish(self, ending: Ending) -> None:
        """It has come to its end."""
        self.state, self.detail = ending.state, ending.detail
        if ending.state == "destroyed":
            self.seconds["destroy"] = ending.seconds

    def is_wanted(self) -> bool:
        """Whether it is held, or someone may still ask for it."""
        if self.leases or self.tests:
            return True
        return not self.planned and self.key.scope != "function"

    def is_over(self) -> bool:
        """Whether it has come to its end, or is about to."""
        return self.state in {"destroying", "destroyed", "kept", "standby", "attached", "leaked"}

    def is_spent(self) -> bool:
        """Whether a test had it for itself: a rerun of that test gets a fresh one."""
        return (
            self.key.scope == "function" and self.used and not self.leases and self.state == "ready"
        )

    def release(self, holder: str) -> None:
        """One lease of a client less."""
        self.leases[holder] -= 1
        if self.leases[holder] <= 0:
            del self.leases[holder]

    def is_unnoticed(self) -> bool:
        """Whether it stopped by itself, and no test's report says so."""
        unnoticed = bool(self.lost) or (bool(self.problem) and not self.told)
        return self.environment is not None and unnoticed
