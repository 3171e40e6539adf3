"""How pytest-xdist's workers reach the broker in the controller.

A local socket with a key that only the workers are given; a connection for each worker, whose
end is the end of all that the worker had leased.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Client, Connection, Listener
from multiprocessing.context import AuthenticationError
from typing import TYPE_CHECKING, Any, Final

from pytest_ephemeral.errors import EphemeralError, LaunchError
from pytest_ephemeral.pytest_plugin.lending import Evidence, Look
from pytest_ephemeral.pytest_plugin.needs import Key

if TYPE_CHECKING:
    from pytest_ephemeral.models import Environment
    from pytest_ephemeral.pytest_plugin.broker import Broker

#: Seconds between two looks for an answer, so that an interrupt never finds half of one read.
TICK: Final = 0.2


class Server:
    """The controller's side: a thread for each worker.

    Attributes:
        address: Where workers connect to.
        authkey: What they prove themselves with.
        refused: Why a worker can't run its tests; empty as long as all can.
    """

    def __init__(self, broker: Broker) -> None:
        self.refused = ""
        self.authkey = secrets.token_bytes(32)
        self._broker = broker
        self._closing = False
        # Linux has names for sockets that leave no file behind, however this process ends;
        # elsewhere the standard library chooses.
        name = f"\0pytest-ephemeral-{secrets.token_hex(8)}" if sys.platform == "linux" else None
        self._listener = Listener(name, backlog=64, authkey=self.authkey)
        self.address: Any = self._listener.address
        self._thread = threading.Thread(target=self._accept, name="ephemeral broker", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more workers; those there were have ended."""
        self._closing = True
        with contextlib.suppress(OSError):
            # Wakes the acceptor. Without a key nothing is waited for, should it have gone already.
            Client(self.address).close()
        self._thread.join(1)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection = self._listener.accept()
            except (OSError, EOFError, AuthenticationError):
                continue  # whoever that was, it is none of our workers
            threading.Thread(
                target=self._serve, args=(connection,), name="ephemeral worker", daemon=True
            ).start()

    def _serve(self, connection: Connection[Any, Any]) -> None:
        holder = f"connection {id(connection)}"
        try:
            while True:
                number, method, arguments = connection.recv()
                connection.send((number, *self._answer(method, arguments, holder)))
        except (OSError, EOFError, TypeError, ValueError):
            pass  # the worker is gone, in whatever way
        finally:
            connection.close()
            self._broker.gone(holder)

    def _answer(self, method: str, arguments: tuple[Any, ...], holder: str) -> tuple[bool, Any]:
        """Whether it could be done, and the answer or the error."""
        try:
            if method == "refuse":
                self.refused = self.refused or arguments[0]
                return True, None
            if method in {"lease", "release"}:
                arguments = (*arguments, holder)
            return True, getattr(self._broker, method)(*arguments)
        except EphemeralError as error:
            return False, error
        except Exception as error:  # noqa: BLE001 - the worker must not wait for ever
            return False, LaunchError(f"internal error of pytest-ephemeral: {error!r}")


class RemoteDesk:
    """A worker's side of the broker."""

    def __init__(self, address: Any, authkey: bytes) -> None:
        self._address = address
        self._authkey = authkey
        self._connection: Connection[Any, Any] | None = None
        self._number = 0
        self._lock = threading.Lock()

    def plan(self, needs: Mapping[Key, Sequence[str]]) -> None:
        """See ``Broker.plan``."""
        self._ask("plan", needs)

    def refuse(self, problem: str) -> None:
        """Say that the tests can't be run as they are written."""
        self._ask("refuse", problem)

    def lease(self, key: Key) -> Environment:
        """See ``Broker.lease``."""
        environment: Environment = self._ask("lease", key)
        return environment

    def release(self, key: Key) -> None:
        """See ``Broker.release``."""
        self._ask("release", key)

    def look(self, key: Key) -> Look:
        """See ``Broker.look``."""
        look: Look = self._ask("look", key)
        return look

    def evidence(self, key: Key, mark: str | None) -> Evidence | None:
        """See ``Broker.evidence``."""
        evidence: Evidence | None = self._ask("evidence", key, mark)
        return evidence

    def close(self) -> None:
        """Give everything back."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, method: str, *arguments: Any) -> Any:
        with self._lock:
            try:
                self._number += 1
                connection = self._connect()
                connection.send((self._number, method, arguments))
                done, answer = self._receive(connection)
            except (OSError, EOFError, AuthenticationError) as error:
                raise LaunchError(
                    "this worker can't reach the process that owns the environments "
                    f"({type(error).__name__}): they can be used by workers of the same machine "
                    "(-n NUM) only, and while pytest itself is running"
                ) from error
        if not done:
            raise answer
        return answer

    def _connect(self) -> Connection[Any, Any]:
        if self._connection is None:
            self._connection = Client(self._address, authkey=self._authkey)
        return self._connection

    def _receive(self, connection: Connection[Any, Any]) -> tuple[bool, Any]:
        """The answer to what was asked last; one that an interrupt left behind is dropped."""
        while True:
            while not connection.poll(TICK):
                pass
            number, done, answer = connection.recv()
            if number == self._number:
                return done, answer
