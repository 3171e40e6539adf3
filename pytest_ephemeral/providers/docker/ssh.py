"""Connections to an engine on a machine that is reached over ssh, as the docker command makes them.

``ssh HOST docker system dial-stdio`` connects its input and output with the engine's socket there
(https://github.com/docker/cli/blob/master/cli/connhelper/connhelper.go). Which key, which user and
which jump host is for ssh's own settings to say, as is ``ControlMaster``, which saves a handshake
for each call. Nobody is asked for a password: who needs one is refused.
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
    """One connection, by an ssh process of its own.

    Args:
        parts: The engine's address, ``ssh://user@host:port/path/to/socket``.
        timeout: Seconds without a byte.
    """

    def __init__(self, parts: SplitResult, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._argv = command(parts)
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the connection
        self._is_asked = False

    def connect(self) -> None:
        """Start ssh; whether it gets there shows when something is asked."""
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(self.timeout)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    self._argv, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=self._said
                )
            except FileNotFoundError as error:
                raise ConnectionError("the ssh command is not installed") from error

    def getresponse(self) -> http.client.HTTPResponse:
        """The engine's answer.

        Raises:
            ConnectionError: There is none; says what ssh said.
        """
        self._is_asked = True
        try:
            return super().getresponse()
        except (http.client.HTTPException, ConnectionError) as error:
            raise ConnectionError(self._explain() or str(error)) from error
        finally:
            self._is_asked = False

    def close(self) -> None:
        """Hang up, and end the process."""
        super().close()
        if self._is_asked:
            return  # http.client has the answer's head, and its body is read from the socket
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def _explain(self) -> str:
        """The last line that ssh, or what it ran, has printed."""
        if self._process is None:
            return ""
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            return ""
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def command(parts: SplitResult) -> list[str]:
    """What is run to be connected with an engine.

    Args:
        parts: Its address.
    """
    dial = ["docker", "system", "dial-stdio"]
    if parts.path.strip("/"):
        dial[1:1] = ["--host", f"unix://{parts.path}"]
    user = ["-l", parts.username] if parts.username else []
    port = ["-p", str(parts.port)] if parts.port else []
    options = ["-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_TIMEOUT}"]
    return ["ssh", *options, *user, *port, "--", parts.hostname or "", shlex.join(dial)]
