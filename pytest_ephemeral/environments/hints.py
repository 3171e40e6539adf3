"""Hints on why an environment is not ready, from its probes, its log and its open ports.

Each hint names the most frequent cause, and what to change.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence
from typing import Final

from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.protocol import Provider

#: How many lines at the end of the log to search.
_LINES: Final = 200

#: The time-out of a TLS handshake in seconds.
_HANDSHAKE: Final = 1.0

#: Patterns in the log, each with the hint.
_IN_LOG: Final = (
    (
        r"Invalid HTTP_HOST header|DisallowedHost",
        "Django rejects the host name: add the environment's address, or '*', to ALLOWED_HOSTS",
    ),
    (
        r"unable to open database file|readonly database|Read-only file system",
        "the image is read-only: let the application write to $STATE",
    ),
    (
        r"[Aa]ddress already in use|EADDRINUSE",
        (
            "another process uses its port: let the application listen on $HOST and $PORT. If "
            "it can only listen "
            "on every address, set `free-port = true` in its template, too"
        ),
    ),
)


def find(environment: Environment, provider: Provider, seen: Sequence[str]) -> list[str]:
    """Find hints about an environment that is not ready yet.

    Args:
        environment: The environment.
        provider: Its provider.
        seen: The results of its probes.

    Returns:
        The hints, the most certain first.
    """
    try:
        own = provider.hint(environment)
        log = provider.logs(environment, tail=_LINES)
    except (EphemeralError, OSError):
        return []
    from_log = _of_log(log)
    from_probes = [] if from_log else [*_of_tls(environment, seen), *_of_probes(seen)]
    return [*([own] if own else []), *from_log, *from_probes]


def of_stop(environment: Environment, provider: Provider, reason: str) -> list[str]:
    """Find hints about an environment that stopped while it was starting.

    Where its processes listen is no hint: what has ended listens nowhere.
    """
    try:
        found = _of_log(provider.logs(environment, tail=_LINES))
    except (EphemeralError, OSError):
        found = []
    if re.search(r"exited with status 0\b", reason):
        stay = "its command has to stay in the foreground: start it without `&` and not as a daemon"
        return [stay, *found]
    return found


def _of_log(log: str) -> list[str]:
    return [text for pattern, text in _IN_LOG if re.search(pattern, log)]


def _of_tls(environment: Environment, seen: Sequence[str]) -> Iterator[str]:
    """Try TLS on a port that closes plain HTTP connections, or answers with a TLS alert."""
    if not any(what.startswith("GET http://") and ": status " not in what for what in seen):
        return
    for name, endpoint in environment.endpoints.items():
        if endpoint.scheme == "http" and _speaks_tls(endpoint.host, endpoint.port):
            yield f"port {endpoint.port} speaks TLS: call it https instead of {name}, in `ports`"


def _speaks_tls(host: str, port: int) -> bool:
    import ssl

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), timeout=_HANDSHAKE) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except OSError:
        return False


def _of_probes(seen: Sequence[str]) -> Iterator[str]:
    for what in seen:
        if ": status 404" in what:
            yield "the application has no such page: change the path in `ready.http`"
        elif ": status 400" in what:
            yield ("the application may reject the host name (Django: ALLOWED_HOSTS) or expect TLS")
        elif what.endswith(": network is unreachable"):
            yield "this machine has no route to it; a loopback interface may have to be started"
        elif re.search(r": status (401|403)", what):
            yield "the page needs a login: use another path, `ready.headers`, or `ready.status`"


def without_probes(lines: Sequence[str], path: str) -> list[str]:
    """Remove the requests of the readiness probe from a log.

    Otherwise the last lines of an access log would have nothing else.

    Args:
        lines: The lines of the log.
        path: The path that the probe requests; empty if there is no HTTP probe.
    """
    if not path:
        return list(lines)
    probe = re.compile(rf"\bGET {re.escape(path)}(?=[\s?\"']|$)")
    return [line for line in lines if not probe.search(line)]
