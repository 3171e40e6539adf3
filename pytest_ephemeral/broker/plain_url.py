"""``--ephemeral-attach URL``: use any service that accepts connections as an environment."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

from pytest_ephemeral import machine, urls
from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.models import Endpoint, Environment
from pytest_ephemeral.tables import Template

#: The name of the provider, and of the template.
PLAIN_URL: Final = "url"

#: The default ports, by the URL's scheme.
PORTS: Final = {"http": 80, "https": 443, "postgresql": 5432, "redis": 6379, "mysql": 3306}

#: Seconds to wait for a connection.
TIMEOUT: Final = 10.0

_NAMED: Final = re.compile(r"(?:^|,)([A-Za-z0-9_-]+)=(?=[A-Za-z][A-Za-z0-9+.-]*://)")


def connect(reference: str, template: Template | None, run: str) -> Environment:
    """Make an environment from URLs, after connecting to each of them.

    Args:
        reference: The URL of the first endpoint, or ``NAME=URL,NAME=URL``.
        template: The default template, for the name of the first endpoint; None if there is none.
        run: This run's id.

    Raises:
        ConfigurationError: It is not a URL, or nothing accepts connections there.
    """
    given = split(reference, next(iter(template.endpoints()), "http") if template else "http")
    endpoints = {name: _connect(url) for name, url in given.items()}
    first = next(iter(given.values()))
    return Environment(
        id=urls.get_location(first),
        template=PLAIN_URL,
        provider=PLAIN_URL,
        url=first,
        endpoints=endpoints,
        created_at=datetime.now(UTC),
        expires_at=None,
        owner=machine.this_owner(run),
        state="ready",
        kept=True,
    )


def split(reference: str, first: str) -> dict[str, str]:
    """Split the option's value into URLs by endpoint name.

    Args:
        reference: A URL, or ``NAME=URL,NAME=URL``.
        first: The endpoint's name for a URL without ``NAME=``.
    """
    if not _NAMED.match(reference):
        return {first: reference}
    _, *parts = _NAMED.split(reference)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def find_missing(environment: Environment, template: Template | None) -> Iterator[str]:
    """Warn if a template has endpoints for which no URL was given."""
    if template is None or environment.provider != PLAIN_URL:
        return
    names = [name for name in template.endpoints() if name not in environment.endpoints]
    if names:
        every = ",".join(f"{name}=URL" for name in template.endpoints())
        yield (
            f"template {template.name!r} also has the port{'s' * (len(names) > 1)} "
            f"{', '.join(names)}, which --ephemeral-attach does not give: tests that use "
            f"{'them' if len(names) > 1 else 'it'} fail. Give all: --ephemeral-attach {every}"
        )


def _connect(url: str) -> Endpoint:
    shown = urls.hide_password(url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or PORTS.get(parts.scheme)
        if port is None:
            raise ConfigurationError(f"--ephemeral-attach {shown}: name its port: HOST:PORT")
        socket.create_connection((host, port), timeout=TIMEOUT).close()
    except ValueError as error:
        why = "" if "@" in url else f": {error}"  # the error may quote a part of a password
        raise ConfigurationError(f"--ephemeral-attach {shown}: not a URL{why}") from None
    except OSError as error:
        raise ConfigurationError(
            f"--ephemeral-attach {shown}: nothing answers there: {error.strerror or error}"
        ) from None
    return Endpoint(host=host, port=port, scheme=parts.scheme)
