"""A backend for brokers that only records its calls."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pytest_ephemeral.broker.entries import Ending
from pytest_ephemeral.broker.protocol import Key
from pytest_ephemeral.models import Environment
from support.environments import make_environment

#: Seconds after which waiting ends if a test does not open a gate.
PATIENCE = 60


class RecordingBackend:
    """A ``Backend`` whose environments are only names.

    Attributes:
        gate: Launches wait until it is set.
        ending: Removals wait until it is set.
        failing: By template: the error of its launches.
        dead: By environment: why it has ended by itself.
        spare: By template: how many environments to launch ahead.
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
        """Accept every template."""

    def spares(self, template: str) -> int:
        return self.spare.get(template, 0)

    def roll_back(self, environment: Environment) -> tuple[Environment, float]:
        """Return the environment unchanged; tests of rollbacks override this."""
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
    """The key of a template's session environment."""
    return Key(template, "session", "")


def function(number: int) -> Key:
    """The key of an environment for one test."""
    return Key("f", "function", f"/{number}")
