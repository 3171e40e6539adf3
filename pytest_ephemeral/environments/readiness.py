"""When an environment is up: it is looked at until every probe has succeeded.

The first look is at once. From 2 ms the pauses grow to 50 ms, each a twentieth of what was waited
so far: an application is noticed late by at most that share of its own start, and one that takes a
minute costs next to nothing.
"""

from __future__ import annotations

import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from pytest_ephemeral.errors import EphemeralError, LaunchError, ReadinessError
from pytest_ephemeral.models import Endpoint, Environment
from pytest_ephemeral.providers.abilities import SupportsHealth, SupportsListeners
from pytest_ephemeral.providers.protocol import Provider
from pytest_ephemeral.tables import Ready, Template

if TYPE_CHECKING:
    from http.client import HTTPConnection

FIRST_PAUSE: Final = 0.002
LONGEST_PAUSE: Final = 0.05
PAUSE_SHARE: Final = 0.05
LOG_LINES: Final = 20

#: Seconds in which a forwarder hangs up when nobody listens behind it, as long as none has been
#: seen to; then so many times as long as the slowest has taken, and at least so long.
HANG_UP: Final = 0.05
HANG_UP_FACTOR: Final = 3
SHORTEST_HANG_UP: Final = 0.01

#: Seconds for a template that has no ``ready`` of its own.
DEFAULT_TIMEOUT: Final = 60.0

#: Seconds that one look may take: an application that accepts and never answers is not waited
#: for longer than this before its processes are looked at again.
ONE_LOOK: Final = 10.0


class Probe(Protocol):
    """One thing to look at."""

    def look(self, seconds: float) -> str:
        """Look once.

        Args:
            seconds: How long it may take.

        Returns:
            Empty when it is as it should be; otherwise what was seen, for people.
        """


def probes_for(
    environment: Environment, template: Template, provider: Provider, headers: Mapping[str, str]
) -> list[Probe]:
    """What must succeed before an environment of that template is ready.

    Args:
        environment: The one to look at.
        template: Its ``ready``; where it has none, all its ports must accept connections.
        provider: What it runs on.
        headers: ``ready.headers`` with everything filled in.
    """
    ready = template.ready
    forwarded = provider.forwards_ports
    probes: list[Probe] = [*_own_probes(environment, provider)]
    if ready is None:
        endpoints = environment.endpoints.values()
        streams = [endpoint for endpoint in endpoints if endpoint.scheme != "udp"]
        return [*probes, *(TcpProbe(endpoint, forwarded) for endpoint in streams)]
    if ready.tcp:
        probes.append(TcpProbe(_endpoint(environment, ready), forwarded))
    if ready.http is not None:
        probes.append(
            HttpProbe(_endpoint(environment, ready), ready.http, _accepted(ready), headers)
        )
    if ready.tcp or ready.http is not None:  # its other ports are checked as without `ready`
        probed = _endpoint(environment, ready)
        others = (one for one in environment.endpoints.values() if one != probed)
        probes += [TcpProbe(endpoint, forwarded) for endpoint in others]
    if ready.log is not None:
        probes.append(LogProbe(environment, provider, re.compile(ready.log, re.MULTILINE)))
    if ready.command is not None:
        probes.append(CommandProbe(environment, provider, ready.command))
    return probes


def wait(
    environment: Environment,
    provider: Provider,
    probes: Sequence[Probe],
    *,
    timeout: float,
    cancelled: threading.Event,
    tell: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Wait until every probe has succeeded once.

    Args:
        environment: The one that is coming up.
        provider: What it runs on.
        probes: What must succeed.
        timeout: Seconds all of it may take.
        cancelled: Set by whoever no longer wants it.
        tell: Given what is seen that is not as it should be, whenever that has changed.
        clock: Monotonic seconds.

    Raises:
        LaunchError: It has stopped by itself (at once, not at the time-out), or is not wanted
            any more.
        ReadinessError: Its time was over; tells what was last seen, and why that may be.
    """
    started = clock()
    deadline = started + timeout
    pending, told = list(probes), ""
    while True:
        _check_alive(environment, provider)
        seen = [(probe, probe.look(min(ONE_LOOK, timeout))) for probe in pending]
        pending = [probe for probe, what in seen if what]
        problems = [what for _, what in seen if what]
        if not pending:
            if not (stranger := _foreign_listener(environment, provider)):
                return
            pending, problems = list(probes), [stranger]  # that answered in its place: look anew
        if "; ".join(problems) != told:
            told = "; ".join(problems)
            tell(told)
        if clock() >= deadline:
            _check_alive(environment, provider)
            raise ReadinessError(_time_out(environment, provider, timeout, problems))
        now = clock()
        pause = min(max(FIRST_PAUSE, (now - started) * PAUSE_SHARE), LONGEST_PAUSE)
        if cancelled.wait(max(0.0, min(pause, deadline - now))):
            raise LaunchError(f"{environment.id} is no longer wanted: the run is ending")


class TcpProbe(msgspec.Struct):
    """A port that accepts a connection.

    Attributes:
        endpoint: Where it is.
        forwarded: Whether something in between accepts in the application's name (a container
            engine's proxy), and hangs up at once when nobody listens behind it.
    """

    endpoint: Endpoint
    forwarded: bool = False
    _slowest: float = 0.0

    def look(self, seconds: float) -> str:
        """See ``Probe``."""
        address = (self.endpoint.host, self.endpoint.port)
        where = f"connect to {address[0]}:{address[1]}"
        try:
            with socket.create_connection(address, timeout=seconds) as connection:
                if self.forwarded and self._hangs_up(connection):
                    return f"{where}: accepted, but nobody listens behind it"
        except OSError as error:
            return f"{where}: {_reason(error)}"
        return ""

    def _hangs_up(self, connection: socket.socket) -> bool:
        """Whether the other side ends a connection right away; a busy machine takes its time."""
        seen = max(SHORTEST_HANG_UP, HANG_UP_FACTOR * self._slowest)
        connection.settimeout(seen if self._slowest else HANG_UP)
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
    """What the platform itself thinks."""

    environment: Environment
    provider: SupportsHealth

    def look(self, seconds: float) -> str:  # noqa: ARG002
        """See ``Probe``."""
        return self.provider.pending_health(self.environment)


class HttpProbe(msgspec.Struct, frozen=True):
    """A path that answers with an accepted status.

    The standard library's client: a look takes less than importing a better one.
    """

    endpoint: Endpoint
    path: str
    accepted: frozenset[int]
    headers: Mapping[str, str]

    def look(self, seconds: float) -> str:
        """See ``Probe``."""
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

        # Whether it is up is asked, not who it is: test environments sign their own certificates.
        context = ssl._create_unverified_context()  # noqa: S323, SLF001
        return HTTPSConnection(host, port, timeout=seconds, context=context)


class LogProbe(msgspec.Struct):
    """A regular expression that is found in what the application prints."""

    environment: Environment
    provider: Provider
    pattern: re.Pattern[str]
    _mark: str | None = None
    _text: str = ""

    def look(self, seconds: float) -> str:  # noqa: ARG002
        """See ``Probe``. Each look reads only what is new, and the end of what was read before."""
        mark = self.provider.log_mark(self.environment)
        self._text = self._text[-4096:] + self.provider.logs(self.environment, since=self._mark)
        self._mark = mark
        if self.pattern.search(self._text):
            return ""
        return f"/{self.pattern.pattern}/ is not in its log"


class CommandProbe(msgspec.Struct, frozen=True):
    """A command run inside the environment that succeeds."""

    environment: Environment
    provider: Provider
    command: str

    def look(self, seconds: float) -> str:
        """See ``Probe``."""
        argv = ["/bin/sh", "-c", self.command]
        try:
            done = self.provider.run(self.environment, argv, timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"{self.command!r} had not ended after {seconds:g} s"
        if done.returncode == 0:
            return ""
        said = (done.stderr or done.stdout).strip().splitlines()[-1:]
        return f"{self.command!r} exited with status {done.returncode}" + "".join(
            f": {line}" for line in said
        )


def last_lines(environment: Environment, provider: Provider) -> str:
    """The last lines of its log, indented under a heading; empty when it printed nothing."""
    try:
        text = provider.logs(environment, tail=LOG_LINES).rstrip()
    except (EphemeralError, OSError) as error:
        return f"\n  its log can't be read: {error}"
    if not text:
        return "\n  it has printed nothing"
    return "\n  the last lines of its log:\n" + "\n".join(
        f"    {line}" for line in text.splitlines()
    )


def _foreign_listener(environment: Environment, provider: object) -> str:
    """What answers in an environment's place, for people; empty when it answers itself."""
    if not isinstance(provider, SupportsListeners):
        return ""
    found = provider.foreign_listener(environment)
    return f"{found}, which is not this environment" if found else ""


def _own_probes(environment: Environment, provider: object) -> list[Probe]:
    return [PlatformProbe(environment, provider)] if isinstance(provider, SupportsHealth) else []


def _endpoint(environment: Environment, ready: Ready) -> Endpoint:
    if ready.port is not None:
        return environment.endpoints[ready.port]
    return next(iter(environment.endpoints.values()))


def _accepted(ready: Ready) -> frozenset[int]:
    if ready.status is None:
        return frozenset(range(200, 400))
    return frozenset([ready.status] if isinstance(ready.status, int) else ready.status)


def _check_alive(environment: Environment, provider: Provider) -> None:
    status = provider.status(environment)
    if status.state != "running":
        detail = status.detail or "nothing of it is there any more"
        raise LaunchError(
            f"{environment.id} stopped while it was starting: {detail}"
            + last_lines(environment, provider)
        )


def _time_out(
    environment: Environment, provider: Provider, timeout: float, seen: Sequence[str]
) -> str:
    lines = [f"{environment.id} was not ready within {timeout:g} s"]
    lines += [f"  last look: {what}" for what in seen]
    detail = provider.status(environment).detail
    lines += [f"  its processes: running{', ' + detail if detail else ''}"]
    if hint := provider.hint(environment):
        lines += [f"  hint: {hint}"]
    return "\n".join(lines) + last_lines(environment, provider)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"{type(error).__name__}: {error}".rstrip(": ")
