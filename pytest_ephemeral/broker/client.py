"""The client of the owner process: sends requests, and waits for the answers.

Every process that runs tests has one client. A child process that a test forks inherits the client,
and opens a connection of its own: two processes can't share one.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, TypeVar

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
    """Sends requests to the ``Run`` and the ``Broker`` of the owner process. It is thread-safe.

    Attributes:
        address: The address that the owner process listens at.
        key: The secret key that authenticates clients.
    """

    def __init__(self, address: Address, key: bytes) -> None:
        self.address = address
        self.key = key
        self._connection: Connection | None = None
        self._connect = connect
        self._new_lock = threading.Lock
        self._lock = threading.Lock()
        self._number = 0
        self._begun: dict[int, tuple[bool, Any] | None] = {}
        self._getpid = os.getpid
        self._pid = os.getpid()
        self._timed_out = subprocess.TimeoutExpired

    # -- a run, from its beginning to its end ----------------------------------------------------

    def open(
        self, settings: Settings, process: ClientProcess, *, listens: bool = False
    ) -> Callable[[], Opened]:
        """Have the owner process read the configuration; returns at once.

        Args:
            settings: The settings of the run.
            process: The variables and module folders of this process.
            listens: Whether an ``EventThread`` of this process is connected.

        Returns:
            A function that waits for the outcome. It raises an EphemeralError if the run can't
            begin.
        """
        self._own()
        with self._lock:
            number = self._send("open", (settings, process, listens))
            self._begun[number] = None
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
        """Wait until another client has opened the run; returns its description."""
        return self.ask("wait_until_open")

    def plan(self, needs: Mapping[Key, Sequence[str]], process: ClientProcess) -> None:
        self.ask("plan", needs, process)

    def refuse(self, problem: str) -> None:
        """Report a mistake in the tests that prevents running them."""
        self.ask("refuse", problem)

    def get_refusal(self) -> str:
        """Why a worker can't run its tests; empty if all can."""
        return self.ask("get_refusal")

    def finish_test(self, test: str, outcome: str, used: Sequence[str]) -> None:
        """See ``Broker.finish_test``. Does not wait for an answer."""
        self._tell("finish_test", test, outcome, used)

    def crash_test(self, test: str) -> None:
        """See ``Broker.crash_test``. Does not wait for an answer."""
        self._tell("crash_test", test)

    def decide(self, waiting: Callable[[], None]) -> None:
        """Request manual approval of the tested environments, and wait for the decisions."""
        self.ask("decide", waiting=waiting)

    def finish(self, waiting: Callable[[], None]) -> Finished:
        """End all environments; wait until they are gone, or the owner process can go on alone."""
        return self.ask("finish", waiting=waiting)

    def count_listeners(self) -> int:
        """The number of processes that receive events."""
        return self.ask("count_listeners")

    def dismiss(self) -> None:
        """Let the workers end: no hook will be called in them any more."""
        self.ask("dismiss")

    def record(self, exit_status: int) -> Finished:
        """Write the report, and record the outcome of the run."""
        return self.ask("record", exit_status)

    # -- environments ----------------------------------------------------------------------------

    def lease(self, key: Key, waiting: Callable[[], None] | None = None) -> Environment:
        try:
            environment: Environment = self.ask("lease", key, waiting=waiting)
        except EphemeralError:
            raise
        except BaseException:  # an interrupt, or the time-out of a test: give the lease back
            with suppress(EphemeralError):
                self._tell("release", key)
            raise
        return environment

    def release(self, key: Key) -> None:
        self.ask("release", key)

    def roll_back(self, key: Key, waiting: Callable[[], None] | None = None) -> None:
        self.ask("roll_back", key, waiting=waiting)

    def look(self, key: Key) -> Look:
        return self.ask("look", key)

    def evidence(self, key: Key, mark: str | None) -> Evidence | None:
        return self.ask("evidence", key, mark)

    def logs(self, environment: Environment) -> str:
        return self.ask("logs", environment)

    def run(
        self, environment: Environment, argv: Sequence[str], *, timeout: float | None
    ) -> subprocess.CompletedProcess[str]:
        """See ``Environment.run``. A separate connection keeps other requests from waiting."""
        done: subprocess.CompletedProcess[str] | None
        with closing(BrokerClient(self.address, self.key)) as own:
            done = own.ask("run", environment, tuple(argv), timeout)
        if done is None:
            raise self._timed_out(argv, timeout or 0.0)
        return done

    def keep(self, environment: Environment) -> None:
        """Keep an environment after the end of the run."""
        self.ask("keep", environment.id)

    # -- requests and answers --------------------------------------------------------------------

    def close(self) -> None:
        """Close the connection; the owner process takes back all leases of this client."""
        if self._connection is not None and self._pid == self._getpid():
            self._connection.close()
        self._connection = None

    def ask(
        self, method: str, *arguments: Any, waiting: Callable[[], None] | None = None
    ) -> _Answer:  # type: ignore[type-var]  # each request has an answer of its own type
        """Send a request to the owner process, and wait for the answer.

        Args:
            method: A method that clients may call; see ``server.OF_SESSION`` and the others there.
            arguments: Its arguments.
            waiting: Called now and then meanwhile.
        """
        self._own()
        with self._lock:
            number = self._send(method, arguments)
            answer: _Answer = self._answer(number, waiting)
            return answer

    def _tell(self, method: str, *arguments: Any) -> None:
        self._own()
        with self._lock:
            self._send(method, arguments, number=0)

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
        """Receive the answer to one request.

        Keeps answers to requests that were begun, and skips those to earlier requests, whose wait
        was interrupted.
        """
        assert self._connection is not None
        while (received := self._begun.get(number)) is None:
            try:
                of, *answered = self._connection.receive(waiting)
            except EOFError as error:
                raise OwnerLostError(LOST.format(type(error).__name__)) from None
            if of == number or of in self._begun:
                self._begun[of] = tuple(answered)
        del self._begun[number]
        done, answer = received
        if not done:
            failure: Failure = answer
            raise failure.error()
        return answer

    def _own(self) -> None:
        """After a fork, replace the parent's connection and lock."""
        if self._pid != self._getpid():
            self._pid = self._getpid()
            self._connection = None
            self._lock = self._new_lock()
