"""Connections to an engine over ssh, as the docker command makes them.

``ssh HOST docker system dial-stdio`` connects its input and output with the engine's socket
(https://github.com/docker/cli/blob/master/cli/connhelper/connhelper.go). Keys, users and jump hosts
come from ssh's own configuration; ``ControlMaster`` there saves a handshake for each call.
Passwords are not supported: ssh must not ask for one.
"""

from __future__ import annotations

import http.client
import shlex
import socket
import subprocess
import tempfile
from typing import IO, Final
from urllib.parse import SplitResult

#: Seconds that ssh may take to connect.
_CONNECT_TIMEOUT: Final = 30


class SshConnection(http.client.HTTPConnection):
    """A connection by an ssh process of its own.

    Args:
        parts: The engine's address, ``ssh://user@host:port/path/to/socket``.
        timeout: Seconds to wait for data; None for no limit.
    """

    def __init__(self, parts: SplitResult, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._argv = command(parts)
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._is_reading = False

    def connect(self) -> None:
        """Start ssh; a failure to connect shows only with the first request."""
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(self.timeout)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    self._argv, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=self._errors
                )
            except FileNotFoundError as error:
                raise ConnectionError("the ssh command is not installed") from error

    def getresponse(self) -> http.client.HTTPResponse:
        """The engine's answer.

        Raises:
            ConnectionError: There is no answer; the message has ssh's last line.
        """
        self._is_reading = True
        try:
            return super().getresponse()
        except (http.client.HTTPException, ConnectionError) as error:
            raise ConnectionError(self._explain() or str(error)) from error
        finally:
            self._is_reading = False

    def close(self) -> None:
        """Close the connection, and end the ssh process."""
        super().close()
        if self._is_reading:
            return  # http.client closes early, but still reads the answer's body from the socket
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _explain(self) -> str:
        """The last line that ssh, or the remote command, has printed."""
        if self._process is None:
            return ""
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            return ""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def command(parts: SplitResult) -> list[str]:
    """The ssh command that connects to an engine.

    Args:
        parts: The engine's address.
    """
    dial = ["docker", "system", "dial-stdio"]
    if parts.path.strip("/"):
        dial[1:1] = ["--host", f"unix://{parts.path}"]
    user = ["-l", parts.username] if parts.username else []
    port = ["-p", str(parts.port)] if parts.port else []
    options = ["-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_TIMEOUT}"]
    return ["ssh", *options, *user, *port, "--", parts.hostname or "", shlex.join(dial)]
