"""Start the owner process, receive its events, and detect its end."""

from __future__ import annotations

import os
import pickle
import signal
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

#: Seconds to wait for the event thread at the end of a run.
_JOIN_TIME: Final = 1.0


class RunListener(Protocol):
    """Receives the owner process's events. All calls come from one thread."""

    def on_progress(self, event: ProgressEvent) -> None:
        """Receive a progress event."""

    def print(self, text: str) -> None:
        """Print lines unchanged."""

    def warn(self, text: str) -> None:
        """Show a warning now, and again in the summary."""

    def has_hook(self, name: str) -> bool:
        """Whether a plugin in this process implements a hook. If not, it is not called."""

    def call_hook(self, name: str, plugins: Sequence[str], arguments: Mapping[str, Any]) -> Any:
        """Call a hook.

        Args:
            name: The hook's name.
            plugins: The plugins to call; empty for all.
            arguments: The hook's arguments, by name.

        Returns:
            The hook's result.
        """

    def on_owner_lost(self) -> None:
        """Called when the owner process has ended unexpectedly."""


class OwnerProcess:
    """A handle of the owner process, in the process that started it.

    Attributes:
        client: Sends requests to it.
        pid: Its process id.

    Raises:
        UnavailableError: This system can't pass a socket to a child process (Windows).
    """

    def __init__(self) -> None:
        if not hasattr(os, "fork"):
            raise UnavailableError(
                "bringing environments up needs Linux or macOS: here a process can't hand its "
                "socket on to the owner process. On Windows, use the Linux subsystem (WSL)"
            )
        key, (listener, address) = new_key(), listen()
        self._popen_type = subprocess.Popen
        self._process = subprocess.Popen(
            _program("serve", str(listener.fileno()), str(os.getpid())),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # a CI step waits until all copies of its output are closed
            bufsize=0,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C must not reach it
        )
        listener.close()
        assert self._process.stdin is not None  # asked for above
        self._stdin = self._process.stdin
        self._stdin.write(key)
        self._write, self._descriptor = os.write, self._stdin.fileno()
        self._kill = os.kill
        close_in_children(self)
        self.client = BrokerClient(address, key)
        self.pid = self._process.pid
        self._events: EventThread | None = None
        self._abandoned = False

    def listen(self, listener: RunListener, hooks: Mapping[str, Sequence[str]]) -> None:
        """Start a thread that delivers events.

        Args:
            listener: The receiver.
            hooks: The hooks that it implements, by plugin.
        """
        self._events = EventThread(self.client.address, self.client.key, listener, hooks)

    def open(self, settings: Settings, process: ClientProcess) -> Callable[[], Opened]:
        """See ``BrokerClient.open``; the owner process waits for the event thread's connection."""
        return self.client.open(settings, process, listens=self._events is not None)

    def interrupt(self) -> None:
        """End all environments now, even those in use. Returns at once."""
        self._resume()
        with suppress(OSError):  # the owner process has ended
            if not self._stdin.closed:
                self._write(self._descriptor, INTERRUPT)

    def replace(self, store: str, run: str) -> subprocess.Popen[bytes]:
        """Start a new owner process that destroys what the dead one has left.

        Args:
            store: The URL of the run's store.
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
        """Don't wait in ``leave``: the user has interrupted a second time."""
        self._abandoned = True

    def leave(self) -> None:
        """Disconnect. The owner process destroys all environments, and ends.

        Waits for that only if the owner process asks for it.
        """
        self._resume()
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
            self._process.returncode = 0  # it runs on; without this, Popen warns

    def _resume(self) -> None:
        """Continue the owner process if it is suspended, so that it can destroy environments."""
        if self._process.poll() is None:  # otherwise, its process id may be another process's
            with suppress(OSError):
                self._kill(self.pid, signal.SIGCONT)

    def forget(self) -> None:
        """Close a forked child's copy of the pipe."""
        with suppress(OSError):
            self._stdin.close()


class EventThread:
    """Receives the owner process's events, and calls hooks in this process.

    Args:
        address: The address that the owner process listens at.
        key: The secret key that authenticates clients.
        listener: Receives the events.
        hooks: The hooks that are implemented in this process, by plugin.

    Attributes:
        welcomed: Set once the owner process has registered this listener.
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
        """Stop. From now on, the end of the owner process is not an error."""
        self._ends = True
        self._connection.close()
        self._thread.join(_JOIN_TIME)

    def wait_for_end(self) -> None:
        """Receive events until the run is over, and then stop."""
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
                self._listener.on_owner_lost()

    def _call(self, name: str, plugins: Sequence[str], arguments: bytes) -> tuple[bool, Any]:
        """Call a hook; returns whether that succeeded, and its result or its error."""
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
    """The command line of an owner process.

    ``-P`` keeps files of the current folder from replacing modules of the same name.
    """
    return [sys.executable, "-P", "-m", _MODULE, *arguments]


def finish_command(store: str, run: str) -> list[str]:
    """The command that destroys what an owner process has left; see ``broker.__main__``."""
    return _program("finish", store, run, *sys.path)
