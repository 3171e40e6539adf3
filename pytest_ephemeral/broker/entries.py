"""The broker's record of each environment, and the protocol of its backends."""

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
    """The outcome of ending an environment.

    Attributes:
        state: ``destroyed``, ``kept``, ``standby``, ``attached`` or ``leaked``.
        seconds: How long the removal took.
        detail: What is left, if the state is ``leaked``.
    """

    state: State
    seconds: float = 0.0
    detail: str = ""


class Backend(Protocol):
    """Launches, inspects and ends environments. The broker calls it from several threads."""

    def check(self, template: str, *, rolled_back: bool) -> None:
        """Check that a template's environments can run on this machine.

        Args:
            template: The template's name.
            rolled_back: Whether its environments are rolled back between tests.

        Raises:
            EphemeralError: Something is missing, or the template is wrong.
        """

    def spares(self, template: str, /) -> int:
        """A template's setting ``spares``: how many unused environments to keep ready; or 0."""

    def bring_up(self, key: Key) -> tuple[Environment, dict[str, float]]:
        """Launch an environment, and wait until it is ready.

        Returns:
            The environment, and how many seconds each phase took.

        Raises:
            EphemeralError: It could not be launched.
        """

    def roll_back(self, environment: Environment) -> tuple[Environment, float]:
        """Roll an environment back to its baseline, and wait until it is ready.

        Returns:
            The environment, and how many seconds that took.

        Raises:
            EphemeralError: The rollback failed, and the environment can't be used any more.
        """

    def exit_reason(self, environment: Environment) -> str:
        """Why it stopped by itself, with its last log lines; empty while it runs."""

    def mark(self, environment: Environment) -> str:
        """The current end of its log, for ``logs``."""

    def logs(self, environment: Environment, since: str | None) -> str:
        """Its log since a mark; all of it for None."""

    def keeps(self, environment: Environment, *, failed: bool) -> bool:
        """Whether to keep it after the run.

        Args:
            environment: The environment.
            failed: Whether a test that used it failed.
        """

    def end(
        self, environment: Environment, *, failed: bool, died: bool, accepted: Callable[[], None]
    ) -> Ending:
        """Save its logs, and destroy or keep it.

        Does not raise: an error is part of the result.

        Args:
            environment: The environment.
            failed: Whether a test that used it failed.
            died: Whether it has stopped by itself.
            accepted: Called once the platform has accepted the request to destroy it.
        """

    def leave(self, environment: Environment) -> None:
        """Report that the removal of an environment continues in the background."""

    def cancel(self) -> None:
        """Cancel all launches in progress."""


class Entry(msgspec.Struct, eq=False):
    """One environment, from its plan to its end.

    Attributes:
        tests: The ids of the unfinished tests that need it.
        planned: Whether it is part of the plan, so that ``tests`` has all tests that need it.
        seconds: How long each phase took.
        rollbacks: How often it was rolled back.
        rollback_failed: Whether a rollback failed.
        missed_problem: Why it had stopped before its last rollback, if no test's report has that.
        leases: The number of leases of each client, by the client's id.
        used: Whether it was ever lent to a test.
        checked: Whether the current lease has checked it, so that ``Broker.look`` need not.
        problem: Why it did not come up, or why it stopped by itself.
        error: The class of that error.
        reported: Whether a test's report has the problem in full.
        failed: Whether a test that used it failed.
        counts: How many tests that used it passed, failed and were skipped.
        accepted: Whether the platform has accepted the request to destroy it.
        changing: Held during a rollback; its end waits for that.
        detail: What is left, if the state is ``leaked``.
    """

    key: Key
    tests: set[str] = msgspec.field(default_factory=set)
    planned: bool = True
    state: State = "planned"
    environment: Environment | None = None
    seconds: dict[str, float] = msgspec.field(default_factory=dict)
    rollbacks: int = 0
    rollback_failed: bool = False
    missed_problem: str = ""
    leases: Counter[str] = msgspec.field(default_factory=Counter)
    used: bool = False
    checked: bool = False
    problem: str = ""
    error: type[EphemeralError] = LaunchError
    reported: bool = False
    failed: bool = False
    counts: Counter[str] = msgspec.field(default_factory=Counter)
    accepted: bool = False
    changing: threading.Lock = msgspec.field(default_factory=threading.Lock)
    detail: str = ""

    def roll_back(self, backend: Backend) -> None:
        """Roll it back to its baseline, even if it has stopped by itself.

        An earlier problem that no report has yet is saved in ``missed_problem``.

        Raises:
            EphemeralError: A rollback failed, now or before, or the environment is being ended.
        """
        if self.environment is None or self.rollback_failed or self.is_over():
            raise EphemeralError(self.problem or "the run is ending: it is being destroyed")
        if not self.reported:
            self.missed_problem = self.missed_problem or self.problem
        try:
            self.environment, seconds = backend.roll_back(self.environment)
        except EphemeralError as error:
            self.rollback_failed, self.problem, self.reported = True, str(error), False
            raise
        self.problem, self.reported = "", False
        self.seconds["rollback"] = self.seconds.get("rollback", 0.0) + seconds
        self.rollbacks += 1

    def count(self, outcome: str) -> None:
        """Count the outcome of one test that used it."""
        self.counts[outcome] += 1
        self.failed = self.failed or outcome == "failed"

    def finish(self, ending: Ending) -> None:
        """Record the outcome of ending it."""
        self.state, self.detail = ending.state, ending.detail
        if ending.state == "destroyed":
            self.seconds["destroy"] = ending.seconds

    def is_wanted(self) -> bool:
        """Whether it is in use, or a test may still need it."""
        if self.leases or self.tests:
            return True
        return not self.planned and self.key.scope != "function"

    def is_over(self) -> bool:
        """Whether it has ended, or is being ended."""
        return self.state in {"destroying", "destroyed", "kept", "standby", "attached", "leaked"}

    def is_used_up(self) -> bool:
        """Whether it was used by its one test. A rerun of that test gets a new environment."""
        return (
            self.key.scope == "function" and self.used and not self.leases and self.state == "ready"
        )

    def release(self, holder: str) -> None:
        """Take back one lease of a client."""
        self.leases[holder] -= 1
        if self.leases[holder] <= 0:
            del self.leases[holder]

    def is_unnoticed(self) -> bool:
        """Whether it stopped by itself, and no test's report has that."""
        unnoticed = bool(self.missed_problem) or (bool(self.problem) and not self.reported)
        return self.environment is not None and unnoticed
