"""What depends on the system this runs on, on the owner's side."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from pathlib import Path

from pytest_ephemeral.errors import EphemeralError, UnavailableError

LINUX = sys.platform == "linux"


# -- the address of a guard ------------------------------------------------------------------


def listen(id: str) -> socket.socket:
    """The socket on which the guard of that id will be asked, before there is a guard.

    Raises:
        EphemeralError: Another guard of that id runs.
    """
    address = _control_address(id)
    listener = socket.socket(socket.AF_UNIX)
    try:
        if not LINUX and not is_listening(id):
            Path(str(address)).unlink(missing_ok=True)  # of a guard that was killed
        listener.bind(address)
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise EphemeralError(
            f"{id} can't be started: a guard of that id runs already ({error.strerror}). "
            f"See it with: pytest-ephemeral show {id}"
        ) from error
    return listener


def connect(id: str) -> socket.socket:
    """A connection to the guard of that id.

    Raises:
        ConnectionError: There is none.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(_control_address(id))
    except FileNotFoundError as error:
        connection.close()
        raise ConnectionRefusedError(*error.args) from error
    except BaseException:
        connection.close()
        raise
    return connection


def is_listening(id: str) -> bool:
    """Whether a guard of that id is there."""
    try:
        connect(id).close()
    except ConnectionError:
        return False
    return True


def _control_address(id: str) -> str | bytes:
    """Linux has names for sockets that vanish with their holder; elsewhere it is a file."""
    if LINUX:
        return f"\0pytest-ephemeral/{os.getuid()}/{id}".encode()
    if not hasattr(socket, "AF_UNIX"):
        raise UnavailableError(
            "the local provider does not run on Windows: use docker, or run this under WSL"
        )
    folder = Path(tempfile.gettempdir()) / f"pytest-ephemeral-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise EphemeralError(f"{folder} belongs to another user: remove it, or set $TMPDIR")
    return str(folder / id)
