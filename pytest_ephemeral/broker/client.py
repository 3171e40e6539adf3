"""A client's side: it asks the owner process, and waits for the answer.

Every process that runs tests has one client. A child that a test forks inherits it, and speaks
over a connection of its own: its parent's is not its to use.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pytest_ephemeral.broker.connection import Address, Connection, connect
from pytest_ephemeral.broker.protocol import (
    ClientProcess,
    Evidence,
    Failure,
    Finished,
    Key,
    Look,
    Opened,
    Settings,
)
from pytest_ephemeral.errors import EphemeralError, OwnerLostError

if TYPE_CHECKING:
    from pytest_ephemeral.models import Environment

_Answer = TypeVar("_Answer")

#: The error of a test that needs an environment when the owner process is gone.
LOST = (
    "the process that owns this run's environments can't be reached ({}): it was killed, or this "
    "worker is on another machine (use workers of this machine: -n NUM)"
)


class BrokerClient:
    """Asks the ``Run`` and the ``Broker`` of the owner process, from any thread.

    Attributes:
        address: Where the owner listens.
        key: What its clients prove themselves with.
    """

    def __init__(self, address: Address, key: bytes) -> None:
        self.address = address
        self.key = key
        self._connection: Connection | None = None
        self._connect = connect
        self._new_lock = threading.Lock
        self._lock = threading.Lock()
        self._number = 0
        self._getpid = os.getpid
        self._pid = os.getpid()
        self._timed_out = subprocess.TimeoutExpired

    # -- a run, from its beginning to its end ----------------------------------------------------

    def open(
        self, settings: Settings, process: ClientProcess, *, listens: bool = False
    ) -> Callable[[], Opened]:
        """Start reading the configuration; returns at once.

        Args:
            settings: What the run is told to do.
            process: What the owner takes over from this process.
            listens: Whether an ``EventThread`` of this process is connected already.

        Returns:
            Waits for the outcome; raises an EphemeralError when the run can't begin.
        """
        number = self._begin("open", (settings, process, listens))
        outcome: list[Opened | EphemeralError] = []

        def wait() -> Opened:
            with self._lock:
                if not outcome:
                    try:
                        outcome.append(self._answer(number, None))
                    except EphemeralError as error:
                        outcome.append(error)
            if isinstance(outcome[0], EphemeralError):
                raise outcome[0]
            return outcome[0]

        return wait

    def wait_until_open(self) -> Opened:
        """Wait for the run that another process opens; returns its description."""
        return self._ask("wait_until_open")

    def plan(self, needs: Mapping[Key, Sequence[str]], process: ClientProcess) -> None:
        self._ask("plan", needs, process)

    def refuse(self, problem: str) -> None:
        """Say that the tests can't be run as they are written."""
        self._ask("refuse", problem)

    def get_refusal(self) -> str:
        """Why a worker can't run its tests; empty as long as all can."""
        return self._ask("get_refusal")

    def finish_test(self, test: str, outcome: str, used: Sequence[str]) -> None:
        """See ``Broker.finish_test``. No answer is waited for."""
        self._tell("finish_test", test, outcome, used)

    def crash_test(self, test: str) -> None:
        """See ``Broker.crash_test``. No answer is waited for."""
        self._tell("crash_test", test)

    def decide(self, waiting: Callable[[], None]) -> None:
        """Request manual approval of what was tested, and wait for the decision."""
        self._ask("decide", waiting=waiting)

    def finish(self, waiting: Callable[[], None]) -> Finished:
        """End all environments, and wait until that is done or can be left to the owner."""
        return self._ask("finish", waiting=waiting)

    def count_listeners(self) -> int:
        """How many processes receive events."""
        return self._ask("count_listeners")

    def dismiss(self) -> None:
        """Have workers wait for no more hooks to be called: they are about to be ended."""
        self._ask("dismiss")

    def record(self, exit_status: int) -> Finished:
        """Write down what became of the run."""
        return self._ask("record", exit_status)

    # -- environments ----------------------------------------------------------------------------

    def lease(self, key: Key, waiting: Callable[[], None] | None = None) -> Environment:
        try:
            environment: Environment = self._ask("lease", key, waiting=waiting)
        except EphemeralError:
            raise
        except BaseException:  # an interrupt, or a test's time-out: no test needs it any more
            with suppress(EphemeralError):
                self._tell("release", key)
            raise
        return environment

    def release(self, key: Key) -> None:
        self._ask("release", key)

    def roll_back(self, key: Key, waiting: Callable[[], None] | None = None) -> None:
        self._ask("roll_back", key, waiting=waiting)

    def look(self, key: Key) -> Look:
        return self._ask("look", key)

    def evidence(self, key: Key, mark: str | None) -> Evidence | None:
        return self._ask("evidence", key, mark)

    def logs(self, environment: Environment) -> str:
        return self._ask("logs", environment)

    def run(
        self, environment: Environment, argv: Sequence[str], *, timeout: float | None
    ) -> subprocess.CompletedProcess[str]:
        """See ``Environment.run``. Over a connection of its own: others need not wait for it."""
        with BrokerClient(self.address, self.key) as own:
            done: subprocess.CompletedProcess[str] | None
            done = own.ask("run", environment, tuple(argv), timeout)
        if done is None:
            raise self._timed_out(argv, timeout or 0.0)
        return done

    def keep(self, environment: Environment) -> None:
        """Let an environment outlive the run."""
        self._ask("keep", environment.id)

    def ask(self, method: str, *arguments: Any) -> Any:
        """Send any other request to the owner."""
        return self._ask(method, *arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- how -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give everything back."""
        if self._connection is not None and self._pid == self._getpid():
            self._connection.close()
        self._connection = None

    def _ask(
        self, method: str, *arguments: Any, waiting: Callable[[], None] | None = None
    ) -> _Answer:  # type: ignore[type-var]  # each request has an answer of its own type
        self._own()
        with self._lock:
            number = self._send(method, arguments)
            answer: _Answer = self._answer(number, waiting)
            return answer

    def _tell(self, method: str, *arguments: Any) -> None:
        self._own()
        with self._lock:
            self._send(method, arguments, number=0)

    def _begin(self, method: str, arguments: tuple[Any, ...]) -> int:
        self._own()
        with self._lock:
            return self._send(method, arguments)

    def _send(self, method: str, arguments: tuple[Any, ...], number: int | None = None) -> int:
        if number is None:
            number = self._number = self._number + 1
        try:
            connection = self._connection
            if connection is None or connection.broken:
                self._connection = self._connect(self.address, self.key)
                if connection is not None:
                    connection.close()
                connection = self._connection
            connection.send((number, method, arguments))
        except OSError as error:
            raise OwnerLostError(LOST.format(type(error).__name__)) from None
        return number

    def _answer(self, number: int, waiting: Callable[[], None] | None) -> Any:
        """The answer to one question. One that an interrupt left behind is dropped."""
        assert self._connection is not None
        while True:
            try:
                of, done, answer = self._connection.receive(waiting)
            except EOFError as error:
                raise OwnerLostError(LOST.format(type(error).__name__)) from None
            if of == number:
                break
        if not done:
            failure: Failure = answer
            raise failure.error()
        return answer

    def _own(self) -> None:
        """After a fork: a connection and a lock of this process's own."""
        if self._pid != self._getpid():
            self._pid = self._getpid()
            self._connection = None
            self._lock = self._new_lock()
