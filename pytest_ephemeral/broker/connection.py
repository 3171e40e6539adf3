"""Messages over a local socket, between processes of one user.

A message is its length (four bytes, big-endian) and a pickle. Before the first message, a client
sends the key. Only clients of this run have the key, so no pickle of anybody else is loaded.

Tests may replace functions of ``os``, ``socket`` and ``time`` in their own process, and freeze its
clock. Therefore a connection stores the socket's methods when it is made, and reads no clock.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hmac
import io
import os
import pickle
import secrets
import socket
import struct
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from pytest_ephemeral.broker.protocol import HANDSHAKE_TIMEOUT

#: Seconds between two calls of ``waiting``.
TICK: Final = 0.1

#: The length in bytes of the key that authenticates clients.
KEY_LENGTH: Final = 32
_LENGTH: Final = struct.Struct(">I")
#: The result of Linux's socket option SO_PEERCRED: pid, uid, gid.
_PEER: Final = struct.Struct("3i")

#: The original class: pytest-socket replaces ``socket.socket``.
_Socket: Final = socket.socket

#: A path, an abstract name (it begins with a zero byte, see unix(7)), or a host and a port.
Address = str | bytes | tuple[str, int]


#: The original classes, for messages: libraries that freeze a test's clock replace them.
_TIMES: Final = {
    ("datetime", kind.__name__): kind for kind in (dt.datetime, dt.timedelta, dt.timezone)
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _TIMES.get((module, name)) or super().find_class(module, name)


def load(data: bytes, stream: type[io.BytesIO] = io.BytesIO) -> Any:
    """Unpickle a message, or a part of one."""
    return _Unpickler(stream(data)).load()


class Connection:
    """One end of a connection. Used by one thread at a time."""

    def __init__(self, end: socket.socket) -> None:
        self._receive, self._send = end.recv, end.sendall
        self._set_timeout, self._close = end.settimeout, end.close
        self._loads, self._dumps = load, pickle.dumps
        self._pack, self._unpack = _LENGTH.pack, _LENGTH.unpack_from
        self._received = bytearray()
        self._socket = end
        self.broken = False
        close_in_children(self)

    def send(self, message: Any) -> None:
        """Send one message.

        Raises:
            OSError: The other end has closed the connection.
        """
        data = self._dumps(message, 5)
        self._set_timeout(None)
        self.broken = True  # until it is complete: an interrupt may leave half a message
        self._send(self._pack(len(data)) + data)
        self.broken = False

    def receive(self, waiting: Callable[[], None] | None = None) -> Any:
        """Receive the next message.

        After an interrupt, the next call continues with the part that has arrived.

        Args:
            waiting: Called every ``TICK`` seconds until a message has arrived.

        Raises:
            EOFError: The other end has closed the connection.
        """
        self._set_timeout(None if waiting is None else TICK)
        while (message := self._next()) is None:
            try:
                data = self._receive(1 << 16)
            except TimeoutError:
                if waiting is not None:
                    waiting()
                continue
            except OSError as error:
                raise EOFError(str(error)) from error
            if not data:
                raise EOFError("the connection was closed by the other end")
            self._received += data
        return self._loads(message)

    def _next(self) -> bytes | None:
        if len(self._received) < _LENGTH.size:
            return None
        (length,) = self._unpack(self._received)
        end = _LENGTH.size + length
        if len(self._received) < end:
            return None
        message = bytes(self._received[_LENGTH.size : end])
        del self._received[:end]
        return message

    def close(self) -> None:
        """Close the connection for all processes; the other end receives EOF."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._close()

    def forget(self) -> None:
        """Close the copy of this process, a forked child; the parent's stays open."""
        self._close()


def listen() -> tuple[socket.socket, Address]:
    """Listen at a random address on this machine; returns the socket, and the address.

    The client that starts the owner process makes the socket, and passes its descriptor on.
    """
    if sys.platform == "linux":  # an abstract name: no file is left, even if the process is killed
        address: Address = f"\0pytest-ephemeral-{secrets.token_hex(16)}"
    elif hasattr(socket, "AF_UNIX"):
        address = str(Path(tempfile.mkdtemp(prefix="pytest-ephemeral-"), "owner"))
    else:
        address = ("127.0.0.1", 0)
    listening = _Socket(_family(address), socket.SOCK_STREAM)
    listening.bind(address)
    listening.listen(64)
    if isinstance(address, tuple):
        address = listening.getsockname()
    return listening, address


def connect(address: Address, key: bytes) -> Connection:
    """Connect as a client.

    Raises:
        OSError: No process listens at the address.
    """
    end = _Socket(_family(address), socket.SOCK_STREAM)
    try:
        end.connect(address)
        end.sendall(key)
    except BaseException:
        end.close()
        raise
    return Connection(end)


def accept(end: socket.socket, key: bytes) -> Connection | None:
    """Authenticate a client by the key and, on Linux, its user id.

    Args:
        end: The accepted socket. It is closed if the client is refused.
        key: The key that the client has to send first.

    Returns:
        None if the client is refused.
    """
    try:
        end.settimeout(HANDSHAKE_TIMEOUT)
        if is_own(end) and hmac.compare_digest(read_exactly(end.recv, len(key)), key):
            return Connection(end)
    except OSError:
        pass  # it sent no key in time, or has disconnected
    end.close()
    return None


def new_key() -> bytes:
    """A random key that authenticates the clients of one run."""
    return secrets.token_bytes(KEY_LENGTH)


def is_own(end: socket.socket) -> bool:
    """Whether the process at the other end belongs to this user; True if the system can't tell."""
    return sys.platform != "linux" or peer(end)[1] == os.getuid()


def peer(end: socket.socket) -> tuple[int, int]:
    """The process id and the user id of the other end; see unix(7), SO_PEERCRED."""
    data = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    pid, uid, _ = _PEER.unpack(data)
    return pid, uid


def read_exactly(read: Callable[[int], bytes], length: int) -> bytes:
    """Read a number of bytes; fewer at the end of the data."""
    data = b""
    while len(data) < length and (more := read(length - len(data))):
        data += more
    return data


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX


class Inherited(Protocol):
    """A resource of a parent process, of which a forked child has a copy."""

    def forget(self) -> None:
        """Close the copy of this process only."""


_inherited: weakref.WeakSet[Inherited] = weakref.WeakSet()


def close_in_children(inherited: Inherited) -> None:
    """Close a resource in every forked child.

    Otherwise the owner process would not notice the end of the parent while the child runs.
    """
    _inherited.add(inherited)


def _forget_all() -> None:
    for inherited in list(_inherited):
        inherited.forget()
    _inherited.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
