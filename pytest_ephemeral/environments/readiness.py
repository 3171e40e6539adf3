"""Readiness: check an environment until every probe has succeeded.

The first check is immediate. Each pause after it is 2 % of the time waited so far, but at least
2 ms and at most 50 ms. So the checks delay a fast start by 2 % at most, and a slow start needs few
of them. Whether the environment still runs is checked every 50 ms, and after the last probe: a
request to the platform takes longer than a connection to a port.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from pytest_ephemeral.environments import hints
from pytest_ephemeral.environments.probes import (
    CommandProbe,
    HttpProbe,
    LogProbe,
    PlatformProbe,
    Probe,
    TcpProbe,
)
from pytest_ephemeral.errors import EphemeralError, LaunchError, ReadinessError
from pytest_ephemeral.models import Endpoint, Environment
from pytest_ephemeral.providers.abilities import SupportsHealth, SupportsListeners, SupportsSockets
from pytest_ephemeral.providers.protocol import Provider
from pytest_ephemeral.tables import Ready, Template

FIRST_PAUSE: Final = 0.002
LONGEST_PAUSE: Final = 0.05
PAUSE_SHARE: Final = 0.02

#: Seconds between two checks whether the environment still runs.
ALIVE_INTERVAL: Final = 0.05
LOG_LINES: Final = 20

#: Seconds until the first search for hints, and between two searches.
FIRST_HINT: Final = 1.0
HINT_INTERVAL: Final = 2.0

#: The time-out in seconds of a template without ``ready``.
DEFAULT_TIMEOUT: Final = 60.0

#: The time-out of one check in seconds. An application may accept a connection and never answer;
#: after this time, the next check finds out whether it still runs.
ONE_LOOK: Final = 10.0


def probes_for(
    environment: Environment, template: Template, provider: Provider, headers: Mapping[str, str]
) -> list[Probe]:
    """The probes that must succeed before an environment is ready.

    Args:
        environment: The environment to check.
        template: Its template. Without ``ready``, all ports must accept connections.
        provider: Its provider.
        headers: The values of ``ready.headers``, filled in.
    """
    ready = template.ready

    def listen(endpoint: Endpoint) -> Probe:
        if not isinstance(provider, SupportsSockets):
            return TcpProbe(endpoint, provider.forwards_ports)
        see = partial(provider.is_listening, environment, endpoint)
        return TcpProbe(endpoint, provider.forwards_ports, see)

    probes: list[Probe] = [*_own_probes(environment, provider)]
    # UDP has no connections to check.
    streams = [one for one in environment.endpoints.values() if one.scheme != "udp"]
    if ready is None:
        return [*probes, *map(listen, streams)]
    if ready.tcp:
        probes.append(listen(_endpoint(environment, ready)))
    if ready.http is not None:
        probes.append(
            HttpProbe(_endpoint(environment, ready), ready.http, _accepted(ready), headers)
        )
    if ready.tcp or ready.http is not None:  # its other ports are checked as without `ready`
        probed = _endpoint(environment, ready)
        probes += [listen(one) for one in streams if one != probed]
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
        environment: The environment that is starting.
        provider: Its provider.
        probes: The probes.
        timeout: The time-out in seconds, for all probes together.
        cancelled: Ends the wait with an error when it is set.
        tell: Receives the failed checks whenever they have changed.
        clock: Returns monotonic seconds.

    Raises:
        LaunchError: The environment stopped by itself, or the wait was cancelled.
        ReadinessError: The time-out; the message has the last results and hints.
    """
    deadline = (started := clock()) + timeout
    notes = _Notes(environment, provider, tell, started + FIRST_HINT)
    pending, alive = probes, _AliveCheck(environment, provider, _path(probes), started)
    while True:
        alive.look(clock())
        pending, problems = _look(pending, min(ONE_LOOK, timeout))
        if not pending:  # if another process has answered instead, check all again
            pending, problems = probes, _foreign_listeners(environment, provider)
        if not problems:
            return alive.look_last()
        notes.update(problems, now := clock())
        if now >= deadline:
            raise _time_out(environment, provider, timeout, problems, alive.path)
        if cancelled.wait(min(_pause(now - started), deadline - now)):
            raise LaunchError(f"{environment.id} is no longer needed: the run is ending")


def _look(probes: Sequence[Probe], timeout: float) -> tuple[list[Probe], list[str]]:
    """Check all probes; returns those that failed, and their results."""
    seen = [(probe, probe.look(timeout)) for probe in probes]
    return [probe for probe, what in seen if what], [what for _, what in seen if what]


def _pause(waited: float) -> float:
    """The pause before the next check, after so many seconds of waiting."""
    return min(max(FIRST_PAUSE, waited * PAUSE_SHARE), LONGEST_PAUSE)


class _AliveCheck:
    """Checks regularly that an environment still runs, and once more at the end."""

    def __init__(self, environment: Environment, provider: Provider, path: str, now: float) -> None:
        self.path = path
        self._asked = (environment, provider, path)
        self._due = now
        self._is_fresh = False

    def look(self, now: float) -> None:
        """Check if ``ALIVE_INTERVAL`` has passed since the last check.

        Args:
            now: Monotonic seconds.

        Raises:
            LaunchError: The environment has stopped.
        """
        self._is_fresh = now >= self._due
        if self._is_fresh:
            _check_alive(*self._asked)
            self._due = now + ALIVE_INTERVAL

    def look_last(self) -> None:
        """Check again, unless ``look`` has just done that."""
        if not self._is_fresh:
            _check_alive(*self._asked)


class _Notes:
    """Reports the failed checks while an environment starts, with hints."""

    def __init__(
        self,
        environment: Environment,
        provider: Provider,
        tell: Callable[[str], None],
        hint_at: float,
    ) -> None:
        self._environment = environment
        self._provider = provider
        self._tell = tell
        self._hint_at = hint_at
        self._hint = ""
        self._reported = ""

    def update(self, problems: Sequence[str], now: float) -> None:
        """Report the failed checks if they have changed.

        Args:
            problems: The results of the failed checks.
            now: Monotonic seconds.
        """
        if now >= self._hint_at:
            found = hints.find(self._environment, self._provider, problems)
            self._hint = "".join(f"; hint: {hint}" for hint in found)
            self._hint_at = now + HINT_INTERVAL
        if (text := "; ".join(problems) + self._hint) != self._reported:
            self._reported = text
            self._tell(text)


def last_lines(environment: Environment, provider: Provider, probed: str = "") -> str:
    """The last lines of an environment's log, indented under a heading.

    Args:
        environment: The environment.
        provider: Its provider.
        probed: The path that the readiness probe requests; lines with it are left out.
    """
    try:
        tail = LOG_LINES * (10 if probed else 1)
        lines = provider.logs(environment, tail=tail).rstrip().splitlines()
    except (EphemeralError, OSError) as error:
        return f"\n  its log can't be read: {error}"
    kept = hints.without_probes(lines, probed)[-LOG_LINES:]
    if not kept:
        only = " but the requests of the readiness probe" if lines else ""
        return f"\n  it has printed nothing{only}"
    return "\n  the last lines of its log:\n" + "\n".join(f"    {line}" for line in kept)


def _foreign_listeners(environment: Environment, provider: object) -> list[str]:
    """A message if another process listens at the environment's port; otherwise empty."""
    if not isinstance(provider, SupportsListeners):
        return []
    found = provider.foreign_listener(environment)
    return [f"{found}, which is not this environment"] if found else []


def shared_listener(environment: Environment, provider: object) -> str:
    """A warning if the environment shares its port with another process; otherwise empty."""
    if not isinstance(provider, SupportsListeners):
        return ""
    try:
        return provider.shared_listener(environment)
    except EphemeralError:
        return ""  # it has just stopped; the next use of it raises the error


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


def _path(probes: Sequence[Probe]) -> str:
    """The path that the HTTP probe requests; empty if there is no HTTP probe."""
    return next((probe.path for probe in probes if isinstance(probe, HttpProbe)), "")


def _check_alive(environment: Environment, provider: Provider, path: str) -> None:
    if reason := provider.status(environment).stop_reason():
        found = hints.of_stop(environment, provider, reason)
        raise LaunchError(
            f"{environment.id} stopped while it was starting: {reason}"
            + "".join(f"\n  hint: {hint}" for hint in found)
            + last_lines(environment, provider, path)
        )


def _time_out(
    environment: Environment, provider: Provider, timeout: float, seen: Sequence[str], path: str
) -> EphemeralError:
    """Make the error for the time-out; raises another one if the environment has stopped."""
    _check_alive(environment, provider, path)
    lines = [f"{environment.id} was not ready within {timeout:g} s"]
    lines += [f"  last readiness check: {what}" for what in seen]
    detail = provider.status(environment).detail
    lines += [f"  its processes: running{', ' + detail if detail else ''}"]
    found = hints.find(environment, provider, seen)
    found += [] if found else ["if it only starts slowly, raise `ready.timeout`"]
    lines += [f"  hint: {hint}" for hint in found]
    return ReadinessError("\n".join(lines) + last_lines(environment, provider, path))
