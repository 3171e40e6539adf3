"""Start the owner process, receive its events, and notice its end."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from pytest_ephemeral.broker.client import BrokerClient
from pytest_ephemeral.broker.connection import (
    Address,
    close_in_children,
    connect,
    listen,
    load,
    new_key,
)
from pytest_ephemeral.broker.protocol import (
    INTERRUPT,
    ClientProcess,
    Failure,
    Opened,
    ProgressEvent,
    Settings,
)
from pytest_ephemeral.errors import NO_THREADS, EphemeralError, LaunchError, UnavailableError

_MODULE: Final = "pytest_ephemeral.broker"

#: Seconds that the end of a run waits for the thread that hears of events.
_JOIN_TIME: Final = 1.0


class RunListener(Protocol):
    """Receives an owner's events. Called from one thread, one event after the other."""

    def hear(self, event: ProgressEvent) -> None:
        """A progress event."""

    def print(self, text: str) -> None:
        """Lines that are to be written as they are."""

    def warn(self, text: str) -> None:
        """A warning, for now and for the end."""

    def has_hook(self, name: str) -> bool:
        """Whether anybody here implements a hook; its arguments are loaded only then."""

    def call_hook(self, name: str, plugins: Sequence[str], arguments: Mapping[str, Any]) -> Any:
        """Call a hook.

        Args:
            name: The hook's name.
            plugins: Only of these; empty for all.
            arguments: By name.
        """

    def lose(self) -> None:
        """The owner process has ended unexpectedly."""


class OwnerProcess:
    """The owner process of one run, as the process sees it that has started it.

    Attributes:
        client: Asks it.
        pid: Its process id.

    Raises:
        UnavailableError: Where a process can't hand a socket on to one that it starts.
    """

    def __init__(self) -> None:
        if not hasattr(os, "fork"):
            raise UnavailableError(
                "bringing environments up needs Linux or macOS: here a process can't hand its "
                "socket on to the owner process. On Windows, use the Linux subsystem (WSL)"
            )
        key, listener = new_key(), listen()
        self._popen_type = subprocess.Popen
        self._process = subprocess.Popen(
            _program("serve", str(listener.fileno()), str(os.getpid())),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # a CI step may wait for files that it holds open
            bufsize=0,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C must not reach it
        )
        listener.close()
        assert self._process.stdin is not None  # asked for above
        self._stdin = self._process.stdin
        self._stdin.write(key)
        self._write, self._descriptor = os.write, self._stdin.fileno()
        close_in_children(self)
        self.client = BrokerClient(listener.address, key)
        self.pid = self._process.pid
        self._events: EventThread | None = None
        self._abandoned = False

    def listen(self, listener: RunListener, hooks: Mapping[str, Sequence[str]]) -> None:
        """Deliver events to a listener, in a thread.

        Args:
            listener: Who.
            hooks: The hooks it implements, by plugin.
        """
        self._events = EventThread(self.client.address, self.client.key, listener, hooks)

    def open(self, settings: Settings, process: ClientProcess) -> Callable[[], Opened]:
        """As ``BrokerClient.open``. Who listens is known to the owner before it brings up any."""
        return self.client.open(settings, process, listens=self._events is not None)

    def interrupt(self) -> None:
        """Have all environments ended now, whoever uses them. Returns at once."""
        with suppress(OSError):  # it is gone
            if not self._stdin.closed:
                self._write(self._descriptor, INTERRUPT)

    def replace(self, store: str, run: str) -> subprocess.Popen[bytes]:
        """Start a fresh owner that ends what this one, which has died, has left.

        Args:
            store: Where the run's ledger is.
            run: The run's id.
        """
        return self._popen_type(
            finish_command(store, run),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def abandon(self) -> None:
        """Stop waiting: the user has interrupted again."""
        self._abandoned = True

    def leave(self) -> None:
        """Detach from it. It ends once it has dealt with everything it brought up."""
        done = False
        with suppress(EphemeralError):
            done = not self._abandoned and bool(self.client.ask("leave"))
        if self._events is not None:
            self._events.expect_end()
        self.client.close()
        self._stdin.close()
        if done:
            self._process.wait()
        else:
            self._process.returncode = 0  # it outlives this process: Popen need not warn of that

    def forget(self) -> None:
        """Close the copy that a forked child has inherited."""
        with suppress(OSError):
            self._stdin.close()


class EventThread:
    """Receives an owner's events, and calls hooks for it.

    Args:
        address: Where the owner listens.
        key: What its clients prove themselves with.
        listener: Who is told.
        hooks: The hooks that are implemented here, by plugin.

    Attributes:
        welcomed: Set once the owner knows of this.
    """

    def __init__(
        self,
        address: Address,
        key: bytes,
        listener: RunListener,
        hooks: Mapping[str, Sequence[str]],
    ) -> None:
        self._listener = listener
        self._connection = connect(address, key)
        try:
            self._connection.send((0, "listen", (hooks,)))
        except BaseException:
            self._connection.close()
            raise
        self._ends = False
        self._over = threading.Event()
        self.welcomed = threading.Event()
        self._loads, self._dumps = load, pickle.dumps
        self._thread = threading.Thread(target=self._hear, name="ephemeral events", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._connection.close()
            raise LaunchError(NO_THREADS) from error

    def expect_end(self) -> None:
        """Expect the owner to end: from now on that is not an error."""
        self._ends = True
        self._connection.close()
        self._thread.join(_JOIN_TIME)

    def wait_for_end(self) -> None:
        """Receive events until the owner says that the run is over."""
        self._over.wait()
        self.expect_end()

    def _hear(self) -> None:
        try:
            while True:
                kind, number, content = self._connection.receive()
                if kind == "call":
                    self._connection.send((number, self._call(*content)))
                elif kind == "sync":
                    self._connection.send((number, (True, None)))
                elif kind == "welcome":
                    self.welcomed.set()
                elif kind == "over":
                    self._over.set()
                else:
                    getattr(self._listener, kind)(content)
        except (EOFError, OSError):
            self.welcomed.set()
            self._over.set()
            self._connection.close()
            if not self._ends:
                self._listener.lose()

    def _call(self, name: str, plugins: Sequence[str], arguments: bytes) -> tuple[bool, Any]:
        """Whether a hook could be called, and its result or its error."""
        if not self._listener.has_hook(name):
            return True, None
        try:
            given = self._loads(arguments)
            result = self._listener.call_hook(name, plugins, given)
            return True, None if result is None else self._dumps(result)
        except EphemeralError as error:
            return False, Failure.of(error)
        except BaseException as error:  # noqa: BLE001 - anyone's code
            return False, f"{type(error).__name__}: {error}"


def _program(*arguments: str) -> list[str]:
    """The command that runs an owner process.

    A file in the current folder never replaces a module of the same name (``-P``).
    """
    return [sys.executable, "-P", "-m", _MODULE, *arguments]


def finish_command(store: str, run: str) -> list[str]:
    """The command that ends what an owner has left; see ``broker.__main__``."""
    return _program("finish", store, run, *sys.path)
