"""Readiness: check an environment until every probe has succeeded.

The first look is at once. From 2 ms the pauses grow to 50 ms, each a fiftieth of what was waited
so far: an application is noticed late by at most that share of its own start, and one that takes a
minute costs next to nothing. Whether it still runs is asked less often, and always at the end: a
platform takes longer to say so than a port to refuse.
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

#: Seconds between two looks at whether it still runs.
ALIVE_INTERVAL: Final = 0.05
LOG_LINES: Final = 20

#: Seconds after which hints are looked for, and between two looks.
FIRST_HINT: Final = 1.0
HINT_INTERVAL: Final = 2.0

#: Seconds for a template that has no ``ready`` of its own.
DEFAULT_TIMEOUT: Final = 60.0

#: Seconds that one look may take: an application that accepts and never answers is not waited
#: for longer than this before its processes are looked at again.
ONE_LOOK: Final = 10.0


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

    def listen(endpoint: Endpoint) -> Probe:
        if not isinstance(provider, SupportsSockets):
            return TcpProbe(endpoint, provider.forwards_ports)
        see = partial(provider.is_listening, environment, endpoint)
        return TcpProbe(endpoint, provider.forwards_ports, see)

    probes: list[Probe] = [*_own_probes(environment, provider)]
    # A server on a UDP port need not answer.
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
        environment: The one that is coming up.
        provider: Its provider.
        probes: What must succeed.
        timeout: Seconds all of it may take.
        cancelled: Set when it is no longer needed.
        tell: Receives what is not ready yet, whenever that has changed.
        clock: Monotonic seconds.

    Raises:
        LaunchError: It stopped by itself, or it is no longer needed.
        ReadinessError: The time-out; tells what was last seen, and likely causes.
    """
    deadline = (started := clock()) + timeout
    notes = _Notes(environment, provider, tell, started + FIRST_HINT)
    pending, alive = probes, _AliveCheck(environment, provider, _path(probes), started)
    while True:
        alive.look(clock())
        pending, problems = _look(pending, min(ONE_LOOK, timeout))
        if not pending:  # another process answered in its place: check again
            pending, problems = probes, _foreign_listeners(environment, provider)
        if not problems and alive.look_last():
            return
        notes.update(problems, now := clock())
        if now >= deadline:
            raise _time_out(environment, provider, timeout, problems, alive.path)
        if cancelled.wait(min(_pause(now - started), deadline - now)):
            raise LaunchError(f"{environment.id} is no longer needed: the run is ending")


def _look(probes: Sequence[Probe], timeout: float) -> tuple[list[Probe], list[str]]:
    """The probes that have not succeeded, and what each has seen."""
    seen = [(probe, probe.look(timeout)) for probe in probes]
    return [probe for probe, what in seen if what], [what for _, what in seen if what]


def _pause(waited: float) -> float:
    """Seconds until the next look, after so many of waiting."""
    return min(max(FIRST_PAUSE, waited * PAUSE_SHARE), LONGEST_PAUSE)


class _AliveCheck:
    """Whether an environment still runs: asked now and then, and last of all."""

    def __init__(self, environment: Environment, provider: Provider, path: str, now: float) -> None:
        self.path = path
        self._asked = (environment, provider, path)
        self._due = now
        self._is_fresh = False

    def look(self, now: float) -> None:
        """Ask if it is time to.

        Args:
            now: Monotonic seconds.

        Raises:
            LaunchError: It does not.
        """
        self._is_fresh = now >= self._due
        if self._is_fresh:
            _check_alive(*self._asked)
            self._due = now + ALIVE_INTERVAL

    def look_last(self) -> bool:
        """As ``look``, unless that was just done; True."""
        if not self._is_fresh:
            _check_alive(*self._asked)
        return True


class _Notes:
    """Progress while an environment comes up: what is not ready yet, and sometimes a hint."""

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
        self._told = ""

    def update(self, problems: Sequence[str], now: float) -> None:
        """Tell it if that has changed.

        Args:
            problems: What the last look has found.
            now: Monotonic seconds.
        """
        if now >= self._hint_at:
            found = hints.find(self._environment, self._provider, problems)
            self._hint = "".join(f"; hint: {hint}" for hint in found)
            self._hint_at = now + HINT_INTERVAL
        if (text := "; ".join(problems) + self._hint) != self._told:
            self._told = text
            self._tell(text)


def last_lines(environment: Environment, provider: Provider, probed: str = "") -> str:
    """The last lines of its log, indented under a heading.

    Args:
        environment: The environment.
        provider: What it runs on.
        probed: The path that the readiness probe requests; lines about it are left out.
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
    """Which process answers instead of the environment, for people; empty when none does."""
    if not isinstance(provider, SupportsListeners):
        return []
    found = provider.foreign_listener(environment)
    return [f"{found}, which is not this environment"] if found else []


def shared_listener(environment: Environment, provider: object) -> str:
    """Which process of an environment that is ready listens where others do, for people."""
    if not isinstance(provider, SupportsListeners):
        return ""
    try:
        return provider.shared_listener(environment)
    except EphemeralError:
        return ""  # it has just ended: whoever uses it receives the error


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
    """The path that the HTTP probe requests, if there is one."""
    return next((probe.path for probe in probes if isinstance(probe, HttpProbe)), "")


def _check_alive(environment: Environment, provider: Provider, path: str) -> None:
    if reason := provider.status(environment).stop_reason():
        found = [hints.of_exit(reason), *hints.find(environment, provider, [])]
        raise LaunchError(
            f"{environment.id} stopped while it was starting: {reason}"
            + "".join(f"\n  hint: {hint}" for hint in found if hint)
            + last_lines(environment, provider, path)
        )


def _time_out(
    environment: Environment, provider: Provider, timeout: float, seen: Sequence[str], path: str
) -> EphemeralError:
    """The error after the time-out, unless it stopped at the last moment."""
    _check_alive(environment, provider, path)
    lines = [f"{environment.id} was not ready within {timeout:g} s"]
    lines += [f"  last readiness check: {what}" for what in seen]
    detail = provider.status(environment).detail
    lines += [f"  its processes: running{', ' + detail if detail else ''}"]
    found = hints.find(environment, provider, seen)
    found += [] if found else ["if it only starts slowly, raise `ready.timeout`"]
    lines += [f"  hint: {hint}" for hint in found]
    return ReadinessError("\n".join(lines) + last_lines(environment, provider, path))
