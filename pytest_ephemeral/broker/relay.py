"""Send events and hook calls from the owner process to its clients."""

from __future__ import annotations

import pickle
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final

import pluggy

from pytest_ephemeral.broker.connection import Connection
from pytest_ephemeral.broker.protocol import Failure
from pytest_ephemeral.errors import HookError
from pytest_ephemeral.models import Environment, Outcome
from pytest_ephemeral.tables import Template

hookimpl = pluggy.HookimplMarker("pytest")

MODIFY: Final = "pytest_ephemeral_modify_template"


class Subscriber:
    """One client that receives events. A thread sends them, so that a slow client delays nothing.

    Attributes:
        hooks: The hooks that this client implements, by plugin.
    """

    def __init__(self, connection: Connection, hooks: Mapping[str, Sequence[str]]) -> None:
        self.hooks = dict(hooks)
        self._connection = connection
        self._messages: queue.SimpleQueue[tuple[str, int, Any] | None] = queue.SimpleQueue()
        self._asked: dict[int, Future[tuple[bool, Any]]] = {}
        self._number = 0
        self._lost = False
        self._lock = threading.Lock()
        threading.Thread(target=self._write, name="ephemeral listener", daemon=True).start()

    def tell(self, kind: str, content: Any) -> None:
        """Queue an event for the client."""
        self._messages.put((kind, 0, content))

    def ask(self, kind: str, content: Any = None) -> tuple[bool, Any] | None:
        """Queue a request and wait for the answer; None if the client has disconnected."""
        answer: Future[tuple[bool, Any]] = Future()
        with self._lock:
            if self._lost:
                return None
            self._number += 1
            self._asked[self._number] = answer
            self._messages.put((kind, self._number, content))
        try:
            return answer.result()
        except EOFError:
            return None

    def serve(self) -> None:
        """Receive answers until the client disconnects."""
        try:
            while True:
                number, answer = self._connection.receive()
                with self._lock:
                    asked = self._asked.pop(number)
                asked.set_result(answer)
        except (EOFError, OSError):
            self.disconnect()

    def disconnect(self) -> None:
        """Mark the client as disconnected; each waiting request returns None."""
        with self._lock:
            self._lost = True
            asked, self._asked = self._asked, {}
        self._messages.put(None)
        for answer in asked.values():
            answer.set_exception(EOFError())

    def _write(self) -> None:
        while message := self._messages.get():
            try:
                self._connection.send(message)
            except OSError:
                return  # ``serve`` detects the end of the connection, too


class Relay:
    """All clients that receive events. The first one is the client that started the owner process.

    The list of clients and their hooks are replaced, never changed, because other threads may be
    iterating over them.

    Attributes:
        connected: Set once a client receives events.
    """

    def __init__(self) -> None:
        self.connected = threading.Event()
        self._first: Subscriber | None = None
        self._listeners: list[Subscriber] = []
        self._manager: pluggy.PluginManager | None = None
        self._lock = threading.Lock()
        self._dismissed = False

    def connect(self, manager: pluggy.PluginManager) -> None:
        """Relay the hook calls of a plugin manager to the clients."""
        self._manager = manager
        manager.register(_EventHooks(self), "ephemeral relay")
        self.update({})

    def add(self, listener: Subscriber) -> None:
        """Add a client."""
        with self._lock:
            self._first = self._first or listener
            self._listeners = [*self._listeners, listener]
            listener.tell("welcome", None)
            if self._dismissed:
                listener.tell("over", None)
        self.update({})
        self.connected.set()

    def remove(self, listener: Subscriber) -> None:
        """Remove a client that has disconnected."""
        with self._lock:
            self._listeners = [one for one in self._listeners if one is not listener]

    def update(self, hooks: Mapping[str, Sequence[str]]) -> None:
        """Add hooks to those of the first client: it has loaded more plugins meanwhile."""
        name = "ephemeral template relay"
        with self._lock:
            if self._first is not None:
                self._first.hooks = {**self._first.hooks, **hooks}
            implemented = any(
                MODIFY in names for one in self._listeners for names in one.hooks.values()
            )
            manager = self._manager
            if implemented and manager is not None and not manager.has_plugin(name):
                manager.register(_TemplateHook(self), name)

    def tell(self, kind: str, content: Any) -> None:
        """Send an event to the first client; see ``process.RunListener``."""
        if self._first is not None:
            self._first.tell(kind, content)

    def flush(self) -> None:
        """Wait until the first client has received every event."""
        if self._first is not None:
            self._first.ask("sync")

    def disconnect_first(self) -> None:
        """Mark the first client as disconnected: a child process may hold its socket open."""
        if self._first is not None:
            self._first.disconnect()

    def count_listeners(self) -> int:
        """The number of clients that receive events."""
        return len(self._listeners)

    def dismiss(self) -> None:
        """Send every client except the first one the last event: the run is over."""
        with self._lock:
            self._dismissed = True
            for listener in self._listeners:
                if listener is not self._first:
                    listener.tell("over", None)

    def call(self, name: str, **arguments: Any) -> list[Any]:
        """Call a hook in every client that implements it.

        A plugin that several clients have loaded is called in one of them only.

        Returns:
            The results that are not None.

        Raises:
            EphemeralError: An implementation raised it.
            HookError: An implementation raised another error.
        """
        content = pickle.dumps(arguments)
        answers = [
            listener.ask("call", (name, plugins, content))
            for listener, plugins in list(self._implementers(name))
        ]
        results = []
        for done, result in filter(None, answers):
            if not done:
                raise result.error() if isinstance(result, Failure) else HookError(result)
            if result is not None:
                results.append(pickle.loads(result))  # noqa: S301 - the client is authenticated
        return results

    def _implementers(self, name: str) -> Iterator[tuple[Subscriber, Sequence[str]]]:
        """The clients to call, each with the plugins to call; empty for all plugins."""
        known: set[str] = set()
        for listener in self._listeners:
            own = [
                plugin
                for plugin, names in listener.hooks.items()
                if name in names and plugin not in known
            ]
            known.update(own)
            if own:
                yield listener, () if listener is self._first else own


class _EventHooks:
    """A plugin that relays all hook calls except that for templates."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    @hookimpl
    def pytest_ephemeral_environment_ready(self, environment: Environment) -> None:
        self._relay.call("pytest_ephemeral_environment_ready", environment=environment)

    @hookimpl
    def pytest_ephemeral_publish_url(self, environment: Environment, url: str) -> None:
        self._relay.call("pytest_ephemeral_publish_url", environment=environment, url=url)

    @hookimpl
    def pytest_ephemeral_environment_stopped(
        self, environment: Environment, outcome: Outcome
    ) -> None:
        self._relay.call(
            "pytest_ephemeral_environment_stopped", environment=environment, outcome=outcome
        )


class _TemplateHook:
    """A plugin that relays templates; registered only if a client implements the hook."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    @hookimpl
    def pytest_ephemeral_modify_template(self, template: Template) -> Any:
        return next(iter(self._relay.call(MODIFY, template=template)), None)
