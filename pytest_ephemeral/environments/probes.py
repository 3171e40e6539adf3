"""Readiness probes: a port, an HTTP request, the log, a command, the platform's health checks."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from pytest_ephemeral.models import Endpoint, Environment
from pytest_ephemeral.providers.abilities import SupportsHealth
from pytest_ephemeral.providers.protocol import Provider

if TYPE_CHECKING:
    from http.client import HTTPConnection

#: Seconds to wait for a forwarder to close the connection, which it does at once if nothing listens
#: behind it. This is the wait until it has closed one.
HANG_UP: Final = 0.1
#: After that, the wait is this factor times the longest time that a close has taken.
HANG_UP_FACTOR: Final = 5
#: The lower limit of that, in seconds.
SHORTEST_HANG_UP: Final = 0.02


class Probe(Protocol):
    """One readiness check."""

    def look(self, seconds: float) -> str:
        """Check once.

        Args:
            seconds: The time-out.

        Returns:
            Empty if the check succeeded; otherwise the result, for the user.
        """


class TcpProbe(msgspec.Struct):
    """A port accepts a connection.

    Attributes:
        endpoint: The host and port.
        forwarded: Whether a forwarder, such as a container engine's proxy, accepts connections
            before the application listens, and then closes them.
        is_listening: Returns whether the application itself listens; None if that is unknown.
    """

    endpoint: Endpoint
    forwarded: bool = False
    is_listening: Callable[[], bool | None] = lambda: None
    _slowest: float = 0.0

    def look(self, seconds: float) -> str:
        address = (self.endpoint.host, self.endpoint.port)
        where = f"connect to {address[0]}:{address[1]}"
        try:
            with socket.create_connection(address, timeout=seconds) as connection:
                if self.forwarded and self._is_alone(connection):
                    return f"{where}: accepted, but nothing listens behind it"
        except OSError as error:
            return f"{where}: {_reason(error)}"
        return ""

    def _is_alone(self, connection: socket.socket) -> bool:
        """Whether only the forwarder has accepted the connection."""
        listening = self.is_listening()
        return self._hangs_up(connection) if listening is None else not listening

    def _hangs_up(self, connection: socket.socket) -> bool:
        """Whether the forwarder closes the connection; it does so at once or not at all."""
        learned = max(SHORTEST_HANG_UP, HANG_UP_FACTOR * self._slowest)
        connection.settimeout(learned if self._slowest else HANG_UP)
        started = time.monotonic()
        try:
            if connection.recv(1, socket.MSG_PEEK):
                return False
        except TimeoutError:
            return False
        except OSError:
            pass  # reset
        self._slowest = max(self._slowest, time.monotonic() - started)
        return True


class PlatformProbe(msgspec.Struct, frozen=True):
    """The platform's own health checks pass."""

    environment: Environment
    provider: SupportsHealth

    def look(self, seconds: float) -> str:  # noqa: ARG002
        return self.provider.pending_health(self.environment)


class HttpProbe(msgspec.Struct, frozen=True):
    """A path answers with an accepted status.

    Uses the standard library's client, because importing another one takes longer than the check.
    """

    endpoint: Endpoint
    path: str
    accepted: frozenset[int]
    headers: Mapping[str, str]

    def look(self, seconds: float) -> str:
        from http.client import HTTPException

        what = f"GET {self.endpoint.url.rstrip('/')}{self.path}"
        connection = self._connection(seconds)
        try:
            connection.request("GET", self.path, headers={"Connection": "close", **self.headers})
            response = connection.getresponse()
        except (OSError, HTTPException) as error:
            return f"{what}: {_reason(error)}"
        finally:
            connection.close()
        if response.status in self.accepted:
            return ""
        return f"{what}: status {response.status} {response.reason}".rstrip()

    def _connection(self, seconds: float) -> HTTPConnection:
        from http.client import HTTPConnection, HTTPSConnection

        host, port = self.endpoint.host, self.endpoint.port
        if self.endpoint.scheme != "https":
            return HTTPConnection(host, port, timeout=seconds)
        import ssl

        # Test environments use self-signed certificates: this checks readiness, not identity.
        context = ssl._create_unverified_context()  # noqa: S323, SLF001
        return HTTPSConnection(host, port, timeout=seconds, context=context)


class LogProbe(msgspec.Struct):
    """A regular expression matches the application's log."""

    environment: Environment
    provider: Provider
    pattern: re.Pattern[str]
    _mark: str | None = None
    _text: str = ""

    def look(self, seconds: float) -> str:  # noqa: ARG002
        """See ``Probe``. Searches the new output, and the last 4096 characters before it."""
        mark = self.provider.log_mark(self.environment)
        self._text = self._text[-4096:] + self.provider.logs(self.environment, since=self._mark)
        self._mark = mark
        if self.pattern.search(self._text):
            return ""
        return f"/{self.pattern.pattern}/ is not in its log"


class CommandProbe(msgspec.Struct, frozen=True):
    """A command inside the environment succeeds."""

    environment: Environment
    provider: Provider
    command: str

    def look(self, seconds: float) -> str:
        argv = ["/bin/sh", "-c", self.command]
        try:
            done = self.provider.run(self.environment, argv, timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"{self.command!r} had not ended after {seconds:g} s"
        if done.returncode == 0:
            return ""
        output = (done.stderr or done.stdout).strip().splitlines()[-1:]
        return f"{self.command!r} exited with status {done.returncode}" + "".join(
            f": {line}" for line in output
        )


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"{type(error).__name__}: {error}".rstrip(": ")
