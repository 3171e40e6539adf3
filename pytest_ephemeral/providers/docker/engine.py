"""A small client of the engine API: the calls that are needed here, and no more.

Not the docker SDK: importing it takes longer (0.10 to 0.16 s) than all that this package adds to a
run, and its convenience is not needed for a dozen calls. Docker and Podman answer the same ones;
they are described at https://docs.docker.com/reference/api/engine/. Paths carry no version, so
that every engine answers in the newest version it speaks.
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

#: Seconds an answer may take, unless a call says otherwise. Starting a container on a machine
#: that is busy takes many.
TIMEOUT: Final = 120.0

#: Seconds in which any working engine answers.
_PING: Final = 10.0

#: What the engine listens on where an address names no port, without and with TLS.
PLAIN_PORT, TLS_PORT = 2375, 2376

JSON_TYPE: Final = {"Content-Type": "application/json"}
TAR_TYPE: Final = {"Content-Type": "application/x-tar"}


class EngineError(EphemeralError):
    """The engine refused.

    Attributes:
        status: The HTTP status it answered with; 404: there is no such thing.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class NoEngineError(UnavailableError):
    """No engine answers."""


class SilentEngineError(NoEngineError, TimeoutError):
    """An engine takes connections, and gives no answer in time."""


class Address(msgspec.Struct, frozen=True):
    """Where an engine listens.

    Attributes:
        url: ``unix:///var/run/docker.sock``, ``tcp://host:2376`` or ``ssh://user@host``.
        certificates: A folder with ca.pem, cert.pem and key.pem, for TLS; empty without.
        verify: Whether its certificate must be good for its name.
        said_by: Who said so, for messages; empty for a default.
    """

    url: str
    certificates: str = ""
    verify: bool = True
    said_by: str = ""

    @property
    def host(self) -> str:
        """The name of the engine's machine; empty for a unix socket, which is this one."""
        return urlsplit(self.url).hostname or ""

    def __str__(self) -> str:
        return f"{self.url} (from {self.said_by})" if self.said_by else self.url


class Engine:
    """An engine. Every call has a connection of its own, so that any thread may make it."""

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
        """Make a call, and return what its answer's JSON says; None where it is empty.

        Args:
            method: ``GET``, ``POST``, ``PUT`` or ``DELETE``.
            path: Without a version, such as ``/containers/json``.
            query: Values that are not text go as JSON; None is left out.
            body: Sent as JSON.
            timeout: Seconds without an answer; None for as long as it takes.

        Raises:
            EngineError: The engine refused; 404 when there is no such thing.
            NoEngineError: It does not answer.
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
        """See whether it answers. Docker runs three programs to say its version, for 10 ms.

        Returns:
            What time it is there, in UTC, to the second.

        Raises:
            NoEngineError: It does not, or what does is no engine.
            EngineError: It answers that it can't.
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
        except (KeyError, TypeError, ValueError):  # it does not say
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
        """As ``call``, for a body or an answer that is no JSON or too large to hold.

        Raises:
            SilentEngineError: There was no answer for so long.
            TimeoutError: It has begun to answer, and no byte has come for so long.
        """
        connection = self._connection(timeout)
        try:
            with self._naming_engine(timeout):
                connection.connect()
                connection.request(method, path + _query(query), body, dict(headers or {}))
                answer = connection.getresponse()
            if answer.status >= http.client.BAD_REQUEST:
                raise self._refusal(answer.status, _message(answer))
            with self._naming_engine():
                yield answer
        finally:
            connection.close()

    def _refusal(self, status: int, message: str) -> EphemeralError:
        if "HTTP request to an HTTPS server" in message:
            return NoEngineError(
                f"the container engine at {self.address} speaks TLS only: set DOCKER_TLS_VERIFY=1, "
                "and DOCKER_CERT_PATH to the folder with ca.pem, cert.pem and key.pem"
            )
        return EngineError(status, message)

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
    def _naming_engine(self, timeout: float | None = None) -> Iterator[None]:
        """Say which engine it is that does not answer, and what to do about it."""
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
            raise NoEngineError(why_not(self.address, error)) from error


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def why_not(address: Address, error: Exception) -> str:
    """Why an engine can't be talked to, and what helps."""
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
    said = f"the container engine at {address} does not answer: {reason.lower()}"
    if address.certificates and isinstance(error, ConnectionError):
        said += f"; it may not accept the certificate in {address.certificates}"
    return said


def json_lines(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The objects that building, pulling, pushing and loading report as they go on."""
    for line in answer:
        if line.strip():
            yield json.loads(line)


def frames(answer: http.client.HTTPResponse) -> Iterator[tuple[int, bytes]]:
    """What a container's logs or an exec's output are made of: 1 (stdout) or 2 (stderr), and data.

    The format is described with the call ``/containers/{id}/attach``.
    """
    while header := _exactly(answer, 8):
        yield header[0], _exactly(answer, int.from_bytes(header[4:], "big"))


def _exactly(answer: http.client.HTTPResponse, size: int) -> bytes:
    """So many bytes; fewer, or none, where the stream ends."""
    data = b""
    while len(data) < size and (more := answer.read(size - len(data))):
        data += more
    return data


def _query(query: Mapping[str, Any] | None) -> str:
    given = {name: value for name, value in (query or {}).items() if value is not None}
    if not given:
        return ""
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in given.items()
    }
    return "?" + urlencode(texts, quote_via=quote)


def _message(answer: http.client.HTTPResponse) -> str:
    text = answer.read().decode(errors="replace").strip()
    try:
        said = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        said = text or answer.reason
    return str(said).strip()


def _tls(address: Address) -> ssl.SSLContext:
    from pytest_ephemeral.providers.docker import tls

    try:
        return tls.context(Path(address.certificates), verify=address.verify)
    except UnavailableError as error:
        raise NoEngineError(
            f"the request to the container engine at {address} failed: {error}"
        ) from None
