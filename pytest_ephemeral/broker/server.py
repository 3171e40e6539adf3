"""Answer the clients of the owner process, in a thread for each client."""

from __future__ import annotations

import gc
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pytest_ephemeral.broker.connection import Connection, accept
from pytest_ephemeral.broker.opening import open_project
from pytest_ephemeral.broker.protocol import (
    HANDSHAKE_TIMEOUT,
    ClientProcess,
    Failure,
    Key,
    Opened,
    Settings,
)
from pytest_ephemeral.broker.relay import Relay, Subscriber
from pytest_ephemeral.errors import EphemeralError, LaunchError
from pytest_ephemeral.models import Environment

if TYPE_CHECKING:
    from pytest_ephemeral.broker.run import Run

#: The methods that clients may call, by the object that has them.
OF_BROKER: Final = frozenset({"finish_test", "crash_test", "roll_back", "look", "evidence"})
OF_BROKER_BY_HOLDER: Final = frozenset({"lease", "release"})
OF_RUN: Final = frozenset({"keep", "decide", "finish", "record"})
OF_RELAY: Final = frozenset({"count_listeners", "dismiss"})
OF_SESSION: Final = frozenset(
    {
        "open",
        "wait_until_open",
        "plan",
        "refuse",
        "get_refusal",
        "logs",
        "run",
        "leave",
    }
)


class Server:
    """Accepts clients.

    Args:
        listening: The socket that clients connect to.
        key: The secret key that authenticates clients.

    Attributes:
        relay: Sends events to the clients that listen.
        run: The run; None until it is opened.
        opening: Held while a run is opened.
        refused: Why a worker can't run its tests; empty if all can.
        planners: The ids of the clients that have sent a plan.
        opened: Set once the run has been opened, or could not be.
    """

    def __init__(self, listening: socket.socket, key: bytes) -> None:
        self.relay = Relay()
        self.run: Run | None = None
        self.refused = ""
        self.planners: set[str] = set()
        self.opened = threading.Event()
        self.opening = threading.Lock()
        self._listening = listening
        self._key = key
        self._thread = threading.Thread(target=self._accept, name="ephemeral server", daemon=True)

    def start(self) -> None:
        """Start to accept clients, in a thread."""
        self._thread.start()

    def close(self) -> Run | None:
        """Prevent the opening of a run; returns the open run, or None."""
        self.opening.acquire()
        return self.run

    def _accept(self) -> None:
        while True:
            try:
                end, _ = self._listening.accept()
            except OSError:
                continue  # the client has disconnected already
            try:
                threading.Thread(
                    target=self._serve, args=(end,), name="ephemeral client", daemon=True
                ).start()
            except RuntimeError:  # the limit of threads is reached; a later client may succeed
                end.close()

    def _serve(self, end: socket.socket) -> None:
        connection = accept(end, self._key)
        if connection is None:
            return
        client = ClientSession(self, connection)
        try:
            while True:
                number, method, arguments = connection.receive()
                if method == "listen":
                    self._listen(connection, *arguments)
                    return
                client.reply(number, method, arguments)
        except (EOFError, OSError, RuntimeError, TypeError, ValueError):
            pass  # the client has disconnected, or sent a broken message
        finally:
            connection.close()
            client.drop()

    def _listen(self, connection: Connection, hooks: Mapping[str, Sequence[str]]) -> None:
        listener = Subscriber(connection, hooks)
        self.relay.add(listener)
        listener.serve()
        self.relay.remove(listener)


class ClientSession:
    """Answers one client, by methods of this class, of ``Relay``, ``Run`` and ``Broker``."""

    def __init__(self, server: Server, connection: Connection) -> None:
        self._server = server
        self._connection = connection
        self._holder = f"client {id(connection)}"
        self._opens = False
        self._sending = threading.Lock()

    def reply(self, number: int, method: str, arguments: tuple[Any, ...]) -> None:
        """Answer a request; a lease in a separate thread.

        A client that is interrupted while it waits for a lease sends other requests.

        Raises:
            OSError: The client has disconnected.
        """
        done, answer = self.answer(method, arguments)
        if method == "lease" and done:
            waiting = threading.Thread(
                target=self._reply_when_up, args=(number, answer), daemon=True
            )
            done, answer = _try(waiting.start)
            if done:
                return
        self._send(number, (done, answer))

    def _reply_when_up(self, number: int, wait: Callable[[], Environment]) -> None:
        with suppress(OSError):  # the client has disconnected
            self._send(number, _try(wait))

    def _send(self, number: int, answer: tuple[bool, Any]) -> None:
        if number:
            with self._sending:
                self._connection.send((number, *answer))

    def answer(self, method: str, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
        """Carry out a request; returns whether that succeeded, and the result or the error."""
        return _try(lambda: self._find(method)(*arguments))

    def _find(self, method: str) -> Callable[..., Any]:
        """The method that answers a request."""
        if method in OF_SESSION:
            return getattr(self, method)  # type: ignore[no-any-return]
        if method in OF_RELAY:
            return getattr(self._server.relay, method)  # type: ignore[no-any-return]
        if method in OF_RUN:
            return getattr(self._run, method)  # type: ignore[no-any-return]
        if method in OF_BROKER:
            return getattr(self._run.broker, method)  # type: ignore[no-any-return]
        if method in OF_BROKER_BY_HOLDER:
            return partial(getattr(self._run.broker, method), holder=self._holder)
        raise LaunchError(f"no such request: {method}")

    def drop(self) -> None:
        """Take back all leases of a client that has disconnected."""
        if self._server.run is not None:
            self._server.run.broker.drop(self._holder)

    @property
    def _run(self) -> Run:
        if self._server.run is None:
            raise LaunchError("the run has not been opened")
        return self._server.run

    def open(self, settings: Settings, process: ClientProcess, listens: bool) -> Opened:
        """See ``Run.open``.

        Args:
            settings: The settings of the run.
            process: The client's variables, module folders and hooks.
            listens: Whether the client receives events over another connection. The run is opened
                after that is made, so that no event is lost.
        """
        self._opens = True
        try:
            project = open_project(settings, process)
            from pytest_ephemeral.broker.run import Run  # the slowest import of this process

            if listens:
                self._server.relay.connected.wait(HANDSHAKE_TIMEOUT)
            self._server.relay.update(process.hooks)
            with self._server.opening:
                self._server.run = Run.open(settings, project, self._server.relay)
                return self._server.run.begin()
        finally:
            gc.freeze()
            gc.enable()
            self._server.opened.set()

    def wait_until_open(self) -> Opened:
        """Wait until another client has opened the run; returns its description."""
        self._server.opened.wait()
        return self._run.describe()

    def refuse(self, problem: str) -> None:
        """Record that this client can't run its tests as they are written."""
        self._server.refused = self._server.refused or problem

    def get_refusal(self) -> str:
        """Why a client can't run its tests; empty if all can."""
        return self._server.refused

    def plan(self, needs: Mapping[Key, Sequence[str]], process: ClientProcess) -> None:
        """See ``Broker.plan``. The hooks of a worker are known from its event connection."""
        self._run.plan(needs, process if self._opens else process._replace(hooks={}))
        self._server.planners.add(self._holder)
        self._run.broker.look_ahead(len(self._server.planners))

    def logs(self, environment: Environment) -> str:
        return self._current(environment).logs()

    def run(
        self, environment: Environment, argv: Sequence[str], timeout: float | None
    ) -> subprocess.CompletedProcess[str] | None:
        """See ``Environment.run``; None after a time-out."""
        try:
            return self._current(environment).run(argv, timeout)
        except subprocess.TimeoutExpired:
            return None

    def _current(self, environment: Environment) -> Environment:
        """The current record of an environment: a rollback may replace its resources."""
        every = (entry.environment for entry in self._run.broker.entries)
        return next((one for one in every if one and one.id == environment.id), environment)

    def leave(self) -> bool:
        """Whether the client, which is about to end, has to wait for the end of this process."""
        run = self._server.run
        return run is None or run.is_awaited()


def _try(act: Callable[[], Any]) -> tuple[bool, Any]:
    """Call a function; returns whether that succeeded, and the result or the error."""
    try:
        return True, act()
    except EphemeralError as error:
        return False, Failure.of(error)
    except Exception as error:  # noqa: BLE001 - the client must receive an answer
        from pytest_ephemeral.broker.failures import explain

        text, kind = explain(error)
        return False, Failure(kind.__name__, text, ())
