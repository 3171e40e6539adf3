"""Answers the clients of the owner process: a thread for each of them."""

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

#: The requests of clients, by the object that answers: each is the name of a method.
OF_BROKER: Final = frozenset({"finish_test", "crash_test", "roll_back", "look", "evidence"})
OF_BROKER_BY_HOLDER: Final = frozenset({"lease", "release"})
OF_RUN: Final = frozenset({"keep", "decide", "finish", "record"})
OF_SESSION: Final = frozenset(
    {
        "open",
        "wait_until_open",
        "plan",
        "refuse",
        "get_refusal",
        "count_listeners",
        "dismiss",
        "logs",
        "run",
        "leave",
    }
)


class Server:
    """Accepts clients.

    Args:
        listening: The socket they connect to.
        key: What they prove themselves with.

    Attributes:
        relay: The clients that hear of what goes on.
        run: What is owned; None before it is opened.
        opening: Held while a run is opened.
        refused: Why a worker can't run its tests.
        planners: The clients that run tests.
        opened: Set once the configuration has been read, or could not be.
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
        """Begin to accept clients."""
        self._thread.start()

    def close(self) -> Run | None:
        """Open no run any more, and give the one that was opened, if there is one."""
        self.opening.acquire()
        return self.run

    def _accept(self) -> None:
        while True:
            try:
                end, _ = self._listening.accept()
            except OSError:
                continue  # that client is gone again
            try:
                threading.Thread(
                    target=self._serve, args=(end,), name="ephemeral client", daemon=True
                ).start()
            except RuntimeError:  # there can be no more threads; the next client may have one
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
            pass  # the client is gone, in whatever way
        finally:
            connection.close()
            client.drop()

    def _listen(self, connection: Connection, hooks: Mapping[str, Sequence[str]]) -> None:
        listener = Subscriber(connection, hooks)
        self.relay.add(listener)
        listener.serve()
        self.relay.remove(listener)


class ClientSession:
    """What one client may ask for; see ``broker.Broker`` and ``run.Run`` for what it means."""

    def __init__(self, server: Server, connection: Connection) -> None:
        self._server = server
        self._connection = connection
        self._holder = f"client {id(connection)}"
        self._opens = False
        self._sending = threading.Lock()

    def reply(self, number: int, method: str, arguments: tuple[Any, ...]) -> None:
        """Answer a request; a lease in a thread of its own.

        A client that was interrupted while it waited for one goes on, and asks for other things.

        Raises:
            OSError: The client is gone.
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
        with suppress(OSError):  # the client is gone
            self._send(number, _try(wait))

    def _send(self, number: int, answer: tuple[bool, Any]) -> None:
        if number:
            with self._sending:
                self._connection.send((number, *answer))

    def answer(self, method: str, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
        """Whether it could be done, and the answer or the error."""
        return _try(lambda: self._find(method)(*arguments))

    def _find(self, method: str) -> Callable[..., Any]:
        """What answers a request."""
        if method in OF_SESSION:
            return getattr(self, method)  # type: ignore[no-any-return]
        if method in OF_RUN:
            return getattr(self._run, method)  # type: ignore[no-any-return]
        if method in OF_BROKER:
            return getattr(self._run.broker, method)  # type: ignore[no-any-return]
        if method in OF_BROKER_BY_HOLDER:
            return partial(getattr(self._run.broker, method), holder=self._holder)
        raise LaunchError(f"no such request: {method}")

    def drop(self) -> None:
        """It is gone, and with it whatever it held."""
        if self._server.run is not None:
            self._server.run.broker.drop(self._holder)

    @property
    def _run(self) -> Run:
        if self._server.run is None:
            raise LaunchError("the run has not been opened")
        return self._server.run

    def open(self, settings: Settings, process: ClientProcess, listens: bool) -> Opened:
        """See ``Run.open``; who listens hears of all that it does.

        Args:
            settings: What the run is told to do.
            process: What the owner takes over from the client.
            listens: Whether the client hears of what goes on, over another connection.
        """
        self._opens = True
        try:
            project = open_project(settings, process)
            from pytest_ephemeral.broker.run import Run  # most of what an owner loads

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
        """What there is; waits until another client has opened the run."""
        self._server.opened.wait()
        return self._run.describe()

    def refuse(self, problem: str) -> None:
        """The tests of this client can't be run as they are written."""
        self._server.refused = self._server.refused or problem

    def get_refusal(self) -> str:
        """Why a client can't run its tests; empty as long as all can."""
        return self._server.refused

    def plan(self, needs: Mapping[Key, Sequence[str]], process: ClientProcess) -> None:
        """See ``Broker.plan``. A worker has told its own hooks when it began to listen."""
        self._run.plan(needs, process if self._opens else process._replace(hooks={}))
        self._server.planners.add(self._holder)
        self._run.broker.look_ahead(len(self._server.planners))

    def count_listeners(self) -> int:
        return self._server.relay.count_listeners()

    def dismiss(self) -> None:
        self._server.relay.dismiss()

    def logs(self, environment: Environment) -> str:
        return self._current(environment).logs()

    def run(
        self, environment: Environment, argv: Sequence[str], timeout: float | None
    ) -> subprocess.CompletedProcess[str] | None:
        """See ``Environment.run``; None when it took too long."""
        try:
            return self._current(environment).run(argv, timeout)
        except subprocess.TimeoutExpired:
            return None

    def _current(self, environment: Environment) -> Environment:
        """The environment as it is now: what it is made of changes when it is put back."""
        every = (entry.environment for entry in self._run.broker.entries)
        return next((one for one in every if one and one.id == environment.id), environment)

    def leave(self) -> bool:
        """The client that this process works for is about to end. Whether it waits for this one."""
        run = self._server.run
        return run is None or run.is_awaited()


def _try(act: Callable[[], Any]) -> tuple[bool, Any]:
    """Whether something could be done, and what it returns or the error."""
    try:
        return True, act()
    except EphemeralError as error:
        return False, Failure.of(error)
    except Exception as error:  # noqa: BLE001 - the client must not wait for ever
        from pytest_ephemeral.broker.failures import explain

        text, kind = explain(error)
        return False, Failure(kind.__name__, text, ())
