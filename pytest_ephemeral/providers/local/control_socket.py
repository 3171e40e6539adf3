"""The socket of a guard, on the owner's side."""

from __future__ import annotations

import errno
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pytest_ephemeral.errors import EphemeralError, UnavailableError

LINUX = sys.platform == "linux"

_NAME = "control"


class GuardAddress(msgspec.Struct, frozen=True):
    """The address of a guard: a socket in a folder.

    An abstract socket of Linux is not used: any user could take its name, and any container on the
    host network could connect to it (CVE-2020-15257).

    Attributes:
        id: The id of the environment or bake.
        folder: The folder of the socket, which only this user can enter.
        name: The socket's name.
    """

    id: str
    folder: Path
    name: str = _NAME


def listen(address: GuardAddress) -> socket.socket:
    """Open the socket of a guard, before the guard is started.

    Raises:
        EphemeralError: Another guard uses that address, or the socket can't be created.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        with _path(address) as path:
            _remove_stale(path)
            listener.bind(path)
        listener.listen(64)
    except OSError as error:
        listener.close()
        why = f"{address.id} can't be started: "
        if error.errno == errno.EADDRINUSE:
            why += "a guard of that id runs already. "
            why += f"See it with: pytest-ephemeral show {address.id}"
        else:
            why += f"its socket can't be created in {address.folder}: {error.strerror}"
        raise EphemeralError(why) from error
    return listener


def connect(address: GuardAddress) -> socket.socket:
    """Connect to a guard.

    Raises:
        ConnectionError: There is no such guard.
        OSError: Its folder can't be entered.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        with _path(address) as path:
            connection.connect(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        connection.close()
        raise ConnectionRefusedError(*error.args) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _remove_stale(path: str) -> None:
    """Remove the socket of a guard that was killed, to which nobody can connect."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
        except OSError:
            return


@contextmanager
def _path(address: GuardAddress) -> Iterator[str]:
    """A short path for ``bind`` and ``connect``, which accept at most 107 bytes (unix(7))."""
    if LINUX:
        folder = os.open(address.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{folder}/{address.name}"
        finally:
            os.close(folder)
        return
    if not hasattr(socket, "AF_UNIX"):
        raise UnavailableError(
            "the local provider does not run on Windows: use docker, or run this under WSL"
        )
    if address.name != _NAME:  # a socket of another program, at its own path
        yield str(address.folder / address.name)
        return
    sockets = Path(tempfile.gettempdir()) / f"pytest-ephemeral-{os.getuid()}"
    sockets.mkdir(mode=0o700, exist_ok=True)
    if sockets.stat().st_uid != os.getuid():
        raise EphemeralError(f"{sockets} belongs to another user: remove it, or set $TMPDIR")
    yield str(sockets / address.id)
