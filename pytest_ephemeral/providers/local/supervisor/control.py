"""The control socket, on which any process of this user can send requests to a guard.

A client sends one line of JSON (for ``run`` also descriptors), and receives one line when the
request is done. If it disconnects before, the command that it runs is killed.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

LONGEST_REQUEST = 1 << 20


class Requester:
    """One client's connection: receives a request, and sends its answer."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.pid = 0  # of the command that the client runs
        self._received = b""
        self._descriptors: list[int] = []

    def receive(self) -> dict[str, Any] | None:
        """Read more data; return the request when it is complete, else None.

        Raises:
            EOFError: The client has disconnected, or the request is not valid.
        """
        try:
            data, descriptors, _, _ = socket.recv_fds(self.connection, 1 << 16, 3)
        except BlockingIOError:
            return None
        except OSError as error:
            raise EOFError from error
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        self._descriptors += descriptors
        self._received += data
        if not data or len(self._received) > LONGEST_REQUEST:
            raise EOFError
        if not self._received.endswith(b"\n"):
            return None
        try:
            request = json.loads(self._received)
        except ValueError as error:
            raise EOFError from error
        self._received = b""
        return request if isinstance(request, dict) else None

    def take_descriptors(self) -> list[int]:
        """The descriptors that came with the request; the caller must close them."""
        taken, self._descriptors = self._descriptors, []
        return taken

    def answer(self, answer: Mapping[str, Any]) -> None:
        """Send the answer, unless the client has disconnected.

        The client also waits until the connection is closed.
        """
        try:
            self.connection.settimeout(1)
            self.connection.sendall(json.dumps(answer).encode() + b"\n")
        except OSError:
            pass

    def close(self) -> None:
        """Close the connection, and descriptors that were not taken."""
        self.connection.close()
        for descriptor in self.take_descriptors():
            os.close(descriptor)


def tell_owner(descriptor: int, report: Mapping[str, Any]) -> None:
    """Send a report to the owner, if the owner still lives."""
    try:
        os.set_blocking(descriptor, False)
        os.write(descriptor, json.dumps(report).encode() + b"\n")
    except OSError:
        pass


def accept(listener: socket.socket) -> Requester | None:
    """Accept the next client; None if it is gone, or belongs to another user."""
    try:
        connection, _ = listener.accept()
    except OSError:
        return None
    if not is_same_user(connection):
        connection.close()
        return None
    return Requester(connection)


def is_same_user(connection: socket.socket) -> bool:
    """Whether the peer of a Unix socket belongs to this user.

    On systems other than Linux, the socket is in a folder that only this user can enter.
    """
    if sys.platform != "linux":
        return True
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, user, _ = struct.unpack("3i", credentials)
    return bool(user == os.getuid())


def exchange(
    connection: socket.socket, request: Mapping[str, Any], descriptors: Sequence[int] = ()
) -> dict[str, Any]:
    """Send a request, and wait for the answer and the end of the connection (client's side).

    Raises:
        EOFError: The guard ended without an answer.
        TimeoutError: The connection's time-out has passed.
    """
    try:
        if not is_same_user(connection):
            raise PermissionError("the guard's address is held by another user")
        data = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(connection, [data], list(descriptors))
        if data[sent:]:  # sending nothing would fail with EPIPE if the answer was sent already
            connection.sendall(data[sent:])
        with connection.makefile("rb") as lines:
            received = lines.read()
    except (ConnectionError, BrokenPipeError) as error:
        raise EOFError from error
    if not received.endswith(b"\n"):
        raise EOFError
    answer: dict[str, Any] = json.loads(received)
    return answer
