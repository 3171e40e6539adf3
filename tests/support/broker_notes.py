"""A backend for brokers that only takes notes."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pytest_ephemeral.broker.entries import Ending
from pytest_ephemeral.broker.protocol import Key
from pytest_ephemeral.models import Environment
from support.environments import make_environment

#: Seconds after which a test that does not open a gate hangs nobody.
PATIENCE = 60


class Notes:
    """The ``Backend`` whose environments are only names.

    Attributes:
        gate: Holds back what comes up.
        ending: Holds back what ends.
        failing: What does not come up, by its template.
        dead: How environments have stopped by themselves, by their ids.
        spare: How many of a template are made ready ahead, by its name.
        accepting: Whether a removal is accepted before it is done.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.launched: list[str] = []
        self.ended: list[str] = []
        self.failing: dict[str, Exception] = {}
        self.dead: dict[str, str] = {}
        self.cancelled = False
        self.left: list[str] = []
        self.spare: dict[str, int] = {}
        self.accepting = True
        self.ending = threading.Event()
        self.ending.set()
        self._lock = threading.Lock()

    def check(self, template: str, *, rolled_back: bool) -> None:
        """Everything is there."""

    def spares(self, template: str) -> int:
        return self.spare.get(template, 0)

    def roll_back(self, environment: Environment) -> tuple[Environment, float]:
        """See the tests of rollbacks."""
        return environment, 0.1

    def bring_up(self, key: Key) -> tuple[Environment, dict[str, float]]:
        with self._lock:
            self.launched.append(f"{key.template}{key.instance}")
            number = len(self.launched)
        self.gate.wait(PATIENCE)
        if key.template in self.failing:
            raise self.failing[key.template]
        environment = make_environment(f"{key.template}-{number}", provider="notes", ttl=None)
        return environment, {"ready": 0.1}

    def exit_reason(self, environment: Environment) -> str:
        return self.dead.get(environment.id, "")

    def mark(self, environment: Environment) -> str:
        return f"mark of {environment.id}"

    def logs(self, environment: Environment, since: str | None) -> str:
        return f"since {since}"

    def keeps(self, environment: Environment, *, failed: bool) -> bool:
        return False

    def end(
        self, environment: Environment, *, failed: bool, died: bool, accepted: Callable[[], None]
    ) -> Ending:
        if self.accepting:
            accepted()
        self.ending.wait(PATIENCE)
        self.ended.append(environment.id)
        return Ending("destroyed", 0.1)

    def leave(self, environment: Environment) -> None:
        self.left.append(environment.id)

    def cancel(self) -> None:
        self.cancelled = True
        self.gate.set()


def session(template: str) -> Key:
    """The key of a template's environment for the session."""
    return Key(template, "session", "")


def function(number: int) -> Key:
    """The key of a test's own environment."""
    return Key("f", "function", f"/{number}")
