"""Messages over a local socket, between processes of one user.

A message is its length in four bytes and a pickle. Before the first message a client sends the
key, which only clients of this run are given, so nothing is unpickled that somebody else sent.

Tests replace the functions of ``os``, ``socket`` and ``time`` in their own process, and freeze
its clock. So a connection keeps the socket's own methods from when it was made, and asks no clock.
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

#: Seconds between two calls of ``waiting`` while an answer is waited for.
TICK: Final = 0.1

#: Bytes of the key that clients prove themselves with.
KEY_LENGTH: Final = 32
_LENGTH: Final = struct.Struct(">I")
#: Linux's socket option for the peer's identity, and its result: pid, uid, gid.
_PEER: Final = struct.Struct("3i")

#: Kept here: pytest-socket puts another class in its place.
_Socket: Final = socket.socket

#: A path, a name without a file (it begins with a zero byte), or a host and a port.
Address = str | bytes | tuple[str, int]


#: Kept here: messages have the real time, even if a test has frozen its own clock.
_TIMES: Final = {
    ("datetime", kind.__name__): kind for kind in (dt.datetime, dt.timedelta, dt.timezone)
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _TIMES.get((module, name)) or super().find_class(module, name)


def load(data: bytes, stream: type[io.BytesIO] = io.BytesIO) -> Any:
    """What a message, or a part of one, says."""
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
        """Send one message, whole.

        Raises:
            OSError: The other end is gone.
        """
        data = self._dumps(message, 5)
        self._set_timeout(None)
        self.broken = True  # an interrupt in the middle leaves half a message on the way
        self._send(self._pack(len(data)) + data)
        self.broken = False

    def receive(self, waiting: Callable[[], None] | None = None) -> Any:
        """The next message.

        An interrupt loses nothing: what has arrived of a message stays for the next call.

        Args:
            waiting: Called every now and then until there is one.

        Raises:
            EOFError: The other end is gone.
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
        """End the connection; the other end sees it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._close()

    def forget(self) -> None:
        """Close this process's copy only: it was inherited by a fork, and is the parent's."""
        self._close()


class ListeningSocket:
    """Where clients connect. Made by the client that starts the owner, and handed to that.

    Attributes:
        address: What clients connect to.
    """

    def __init__(self, listening: socket.socket, address: Address) -> None:
        self.address = address
        self._socket = listening

    def fileno(self) -> int:
        """Its descriptor, for the process that is to accept connections."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this process's copy."""
        self._socket.close()


def listen() -> ListeningSocket:
    """Listen at an address that only this user can know."""
    if sys.platform == "linux":  # a name without a file is gone with the process, however it ends
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
    return ListeningSocket(listening, address)


def connect(address: Address, key: bytes) -> Connection:
    """Connect as a client.

    Raises:
        OSError: Nobody listens there any more.
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
    """Let a client in that has the key; None for anybody else.

    Args:
        end: What was accepted. It is closed when it is not let in.
        key: What it has to send first.
    """
    try:
        end.settimeout(HANDSHAKE_TIMEOUT)
        if is_own(end) and hmac.compare_digest(_exactly(end, len(key)), key):
            return Connection(end)
    except OSError:
        pass  # it said nothing for too long, or is gone
    end.close()
    return None


def new_key() -> bytes:
    """What clients prove themselves with."""
    return secrets.token_bytes(KEY_LENGTH)


def is_own(end: socket.socket) -> bool:
    """Whether the process at the other end is this user's, where the system can tell."""
    return sys.platform != "linux" or peer(end)[1] == os.getuid()


def peer(end: socket.socket) -> tuple[int, int]:
    """The process id and the user id of the other end; see unix(7), SO_PEERCRED."""
    data = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    pid, uid, _ = _PEER.unpack(data)
    return pid, uid


def _exactly(end: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = end.recv(length - len(data))
        if not more:
            break
        data += more
    return data


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX


class Inherited(Protocol):
    """What a forked child has a copy of that is its parent's."""

    def forget(self) -> None:
        """Close this process's copy only."""


_inherited: weakref.WeakSet[Inherited] = weakref.WeakSet()


def close_in_children(inherited: Inherited) -> None:
    """Close something in every child that is forked: one that held it would pass for its parent."""
    _inherited.add(inherited)


def _forget_all() -> None:
    for inherited in list(_inherited):
        inherited.forget()
    _inherited.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
