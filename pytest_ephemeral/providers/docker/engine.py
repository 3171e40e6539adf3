"""A small client of the engine API, for the few calls that are needed here.

The docker SDK is not used: importing it takes longer (0.10 to 0.16 s) than all that this package
adds to a run. Docker and Podman support the same calls, which are described at
https://docs.docker.com/reference/api/engine/. Paths have no version, so every engine answers with
the newest version that it supports.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from pytest_ephemeral.errors import EphemeralError, UnavailableError

if TYPE_CHECKING:
    import ssl

#: Seconds that an answer may take by default: on a busy machine, starting a container takes long.
TIMEOUT: Final = 120.0

#: Seconds within which a working engine answers a ping.
_PING: Final = 10.0

#: The ports of addresses without one, without and with TLS.
PLAIN_PORT, TLS_PORT = 2375, 2376

#: A path's characters that are sent as they are: a name in it may be anything that a user writes.
#: A redirection is how engines answer a path with ``..`` or without a name.
_PATH_CHARACTERS: Final = "/:@%"
_REDIRECTIONS: Final = frozenset({301, 302, 307, 308})

JSON_TYPE: Final = {"Content-Type": "application/json"}
TAR_TYPE: Final = {"Content-Type": "application/x-tar"}


class EngineError(EphemeralError):
    """The engine refused a call.

    Attributes:
        status: The HTTP status of the answer, such as 404 for an unknown container; 0 in an error
            that another process describes by its text.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class NoEngineError(UnavailableError):
    """No engine answers."""


class SilentEngineError(NoEngineError, TimeoutError):
    """An engine accepts connections, but does not answer in time."""


class Address(msgspec.Struct, frozen=True):
    """The address of an engine.

    Attributes:
        url: ``unix:///var/run/docker.sock``, ``tcp://host:2376`` or ``ssh://user@host``.
        certificates: The folder with ca.pem, cert.pem and key.pem for TLS; empty for no TLS.
        verify: Whether to verify the engine's certificate.
        source: The variable or context with the address, for messages; empty for a default.
    """

    url: str
    certificates: str = ""
    verify: bool = True
    source: str = ""

    @property
    def host(self) -> str:
        """The host name of the engine's machine; empty for a unix socket on this machine."""
        return urlsplit(self.url).hostname or ""

    def __str__(self) -> str:
        return f"{self.url} (from {self.source})" if self.source else self.url


class Engine:
    """A container engine. Every call opens its own connection, so threads may share this."""

    def __init__(self, address: Address) -> None:
        self.address = address

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        timeout: float | None = TIMEOUT,
    ) -> Any:
        """Make a call, and return its answer's JSON; None if the answer is empty.

        Args:
            method: ``GET``, ``POST``, ``PUT`` or ``DELETE``.
            path: The path without a version, such as ``/containers/json``.
            query: The query; values other than text are sent as JSON, None is left out, and a list
                is a key that is given several times.
            body: The body, sent as JSON.
            timeout: Seconds to wait for data; None for no limit.

        Raises:
            EngineError: The engine refused.
            NoEngineError: The engine does not answer.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = JSON_TYPE if data else {}
        with self.stream(
            method, path, query=query, body=data, headers=headers, timeout=timeout
        ) as answer:
            text = answer.read()
        try:
            return json.loads(text) if text.strip() else None
        except ValueError:
            raise NoEngineError(
                f"the server at {self.address} is not a container engine: its answer is not JSON"
            ) from None

    def ping(self) -> datetime:
        """Check that the engine answers. For ``/version``, Docker would run three programs.

        Returns:
            The engine's time, in UTC, to the second.

        Raises:
            NoEngineError: Nothing answers, or not a container engine.
            EngineError: The engine answers with an error.
        """
        with self.stream("GET", "/_ping", timeout=_PING) as answer:
            answer.read()
        if "Api-Version" not in answer.headers:
            raise NoEngineError(
                f"the server at {self.address} is not a container engine: it does not report "
                "its API version"
            )
        try:
            return parsedate_to_datetime(answer.headers["Date"]).astimezone(UTC)
        except (KeyError, TypeError, ValueError):  # no valid date
            return datetime.now(UTC)

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: bytes | IO[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = TIMEOUT,
    ) -> Iterator[http.client.HTTPResponse]:
        """Make a call whose body or answer is a stream; see ``call``.

        Raises:
            SilentEngineError: The answer has not begun in time.
            TimeoutError: No data has come for ``timeout`` seconds within the answer.
        """
        connection = self._connection(timeout)
        try:
            with self._translate_errors(timeout):
                connection.connect()
                url = quote(path, safe=_PATH_CHARACTERS) + _query(query)
                connection.request(method, url, body, dict(headers or {}))
                answer = connection.getresponse()
            if answer.status in _REDIRECTIONS:
                raise EngineError(f"there is nothing at {path}", answer.status)
            if answer.status >= http.client.BAD_REQUEST:
                raise self._refusal(answer.status, _message(answer))
            with self._translate_errors():
                yield answer
        finally:
            connection.close()

    def _refusal(self, status: int, message: str) -> EphemeralError:
        if "HTTP request to an HTTPS server" in message:
            return NoEngineError(
                f"the container engine at {self.address} speaks TLS only: set DOCKER_TLS_VERIFY=1, "
                "and DOCKER_CERT_PATH to the folder with ca.pem, cert.pem and key.pem"
            )
        return EngineError(message, status)

    def _connection(self, timeout: float | None) -> http.client.HTTPConnection:
        parts = urlsplit(self.address.url)
        if parts.scheme == "unix":
            return _UnixConnection(parts.path, timeout)
        if parts.scheme == "ssh":
            from pytest_ephemeral.providers.docker.ssh import SshConnection

            return SshConnection(parts, timeout)
        host = parts.hostname or "localhost"
        if not self.address.certificates:
            return http.client.HTTPConnection(host, parts.port or PLAIN_PORT, timeout=timeout)
        return http.client.HTTPSConnection(
            host, parts.port or TLS_PORT, timeout=timeout, context=_tls(self.address)
        )

    @contextmanager
    def _translate_errors(self, timeout: float | None = None) -> Iterator[None]:
        """Turn errors of the connection into messages with the engine's address and advice."""
        try:
            yield
        except TimeoutError as error:
            if timeout is None:
                raise
            raise SilentEngineError(
                f"the container engine at {self.address} has not answered within {timeout:g} s: "
                "see that an engine listens there, and that its machine is not overloaded"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise NoEngineError(describe_failure(self.address, error)) from error


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def describe_failure(address: Address, error: Exception) -> str:
    """Why an engine does not answer, and what to do."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    parts = urlsplit(address.url)
    if parts.scheme == "ssh":
        host = f"{parts.username}@{parts.hostname}" if parts.username else parts.hostname
        port = f" -p {parts.port}" if parts.port else ""
        return (
            f"the container engine at {address} does not answer: {reason}. See that this works, "
            f"without a password: ssh{port} {host} docker version"
        )
    if isinstance(error, PermissionError):
        return (
            f"no permission to use the container engine at {address}: join its group "
            "(sudo usermod -aG docker $USER, then log in again), or run it rootless "
            "(dockerd-rootless-setuptool.sh install)"
        )
    if type(error).__module__ == "ssl":
        from pytest_ephemeral.providers.docker import tls

        return (
            f"the container engine at {address} {tls.describe_failure(error, address.certificates)}"
        )
    message = f"the container engine at {address} does not answer: {reason.lower()}"
    if address.certificates and isinstance(error, ConnectionError):
        message += f"; it may not accept the certificate in {address.certificates}"
    return message


def json_lines(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The progress messages of a build, pull, push or load."""
    for line in answer:
        if line.strip():
            yield json.loads(line)


def frames(answer: http.client.HTTPResponse) -> Iterator[tuple[int, bytes]]:
    """The frames of logs and output: each is 1 (stdout) or 2 (stderr), and the data.

    The format is described with the call ``/containers/{id}/attach``.
    """
    while header := _read(answer, 8):
        yield header[0], _read(answer, int.from_bytes(header[4:], "big"))


def _read(answer: http.client.HTTPResponse, size: int) -> bytes:
    """Read so many bytes; fewer at the end of the stream."""
    data = b""
    while len(data) < size and (more := answer.read(size - len(data))):
        data += more
    return data


def _query(query: Mapping[str, Any] | None) -> str:
    given = {name: value for name, value in (query or {}).items() if value is not None}
    if not given:
        return ""
    texts = {
        name: value if isinstance(value, str | list) else json.dumps(value)
        for name, value in given.items()
    }
    return "?" + urlencode(texts, doseq=True, quote_via=quote)


def _message(answer: http.client.HTTPResponse) -> str:
    text = answer.read().decode(errors="replace").strip()
    try:
        message = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        message = text or answer.reason
    return str(message).strip()


def _tls(address: Address) -> ssl.SSLContext:
    from pytest_ephemeral.providers.docker import tls

    try:
        return tls.context(Path(address.certificates), verify=address.verify)
    except UnavailableError as error:
        raise NoEngineError(
            f"the request to the container engine at {address} failed: {error}"
        ) from None
