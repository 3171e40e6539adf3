"""Hints on why an environment is not ready, from its probes, its log and its listeners.

Each hint names the cause that people meet most often, and what to change.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence
from typing import Final

from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.protocol import Provider

#: Lines of the log that are searched.
_LINES: Final = 200

#: Seconds that a TLS handshake may take.
_HANDSHAKE: Final = 1.0

#: A pattern in the log, and what to change.
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
    """Hints about an environment that is starting, or has not become ready.

    Args:
        environment: The environment.
        provider: What it runs on.
        seen: The results of its probes.

    Returns:
        What to change, the most certain first; empty when nothing is known.
    """
    try:
        own = provider.hint(environment)
        log = provider.logs(environment, tail=_LINES)
    except (EphemeralError, OSError):
        return []
    from_log = [text for pattern, text in _IN_LOG if re.search(pattern, log)]
    from_probes = [] if from_log else [*_of_tls(environment, seen), *_of_probes(seen)]
    return [*([own] if own else []), *from_log, *from_probes]


def of_exit(detail: str) -> str:
    """A hint about a process that ended during its start; empty when there is none."""
    if re.search(r"exited with status 0\b", detail):
        return "its command has to stay in the foreground: start it without `&` and not as a daemon"
    return ""


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
        elif re.search(r": status (401|403)", what):
            yield "the page needs a login: use another path, `ready.headers`, or `ready.status`"


def without_probes(lines: Sequence[str], path: str) -> list[str]:
    """The lines of a log without the requests of the readiness probe.

    An access log would otherwise push out why the application is not ready.

    Args:
        lines: Of the log.
        path: What the probe requests; empty when it requests nothing.
    """
    if not path:
        return list(lines)
    probe = re.compile(rf"\bGET {re.escape(path)}(?=[\s?\"']|$)")
    return [line for line in lines if not probe.search(line)]
