"""What a broker knows of each environment, and whom it has for bringing them up and ending them."""

from __future__ import annotations

from collections import Counter
from typing import Literal, NamedTuple, Protocol

import msgspec

from pytest_ephemeral.models import Environment
from pytest_ephemeral.pytest_plugin.needs import Key

State = Literal["planned", "launching", "up", "failed", "ending", "ended"]


class Fate(NamedTuple):
    """What became of an environment.

    Attributes:
        word: ``destroyed``, ``destroying`` (by its watchdog, and nobody waits), ``kept``,
            ``attached`` or ``leaked``.
        seconds: How long ending it took.
        detail: What remains of it, when it leaked.
        died: How it had stopped by itself, if it had.
    """

    word: str
    seconds: float = 0.0
    detail: str = ""
    died: str = ""


class Keeper(Protocol):
    """Who brings environments up and ends them, for a broker. Called from its threads."""

    def check(self, template: str) -> None:
        """See whether what a template runs on is there.

        Raises:
            UnavailableError: It is not.
        """

    def bring_up(self, key: Key) -> tuple[Environment, dict[str, float]]:
        """Bring one up: it is ready, and how many seconds each phase took."""

    def died(self, environment: Environment) -> str:
        """How it has stopped by itself, with its last lines; empty while it runs."""

    def mark(self, environment: Environment) -> str:
        """Where its log ends now."""

    def logs(self, environment: Environment, since: str | None) -> str:
        """What it has printed since a mark."""

    def keeps(self, *, failed: bool) -> bool:
        """Whether an environment is left up, by whether a test that used it failed."""

    def end(self, environment: Environment, *, failed: bool) -> Fate:
        """Destroy or keep it. Never raises: what went wrong is its fate."""

    def leaves(self, environment: Environment) -> bool:
        """Let what is being destroyed be finished without this process, if that can be."""

    def cancel(self) -> None:
        """Hurry: nothing that is still coming up is wanted."""


class Entry(msgspec.Struct, eq=False):
    """One environment, from being planned to its end.

    Attributes:
        tests: The selected tests that need it and have not finished.
        planned: Whether it was known beforehand who needs it.
        leases: How often each worker holds it.
        used: Whether a test ever had it.
        seen: Whether it was looked at for a lease, which begins with its mark.
        problem: Why it did not come up, or how it died.
        told: Whether a test's report has the problem in full.
        failed: Whether a test that used it failed.
        counts: How many tests that used it passed, failed and were skipped.
    """

    key: Key
    tests: set[str] = msgspec.field(default_factory=set)
    planned: bool = True
    state: State = "planned"
    environment: Environment | None = None
    seconds: dict[str, float] = msgspec.field(default_factory=dict)
    leases: Counter[str] = msgspec.field(default_factory=Counter)
    used: bool = False
    seen: bool = False
    problem: str = ""
    told: bool = False
    failed: bool = False
    counts: Counter[str] = msgspec.field(default_factory=Counter)
    fate: Fate | None = None

    def lasts(self) -> bool:
        """Whether it is held, or someone may still ask for it."""
        if self.leases or self.tests:
            return True
        return not self.planned and self.key.scope != "function"
