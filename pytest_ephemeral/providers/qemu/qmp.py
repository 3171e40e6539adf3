"""Connections to a machine: to QEMU's monitor, the guest agent, and the restore helper.

All are sockets in the environment's folder, which only this user can enter. All use one JSON object
on each line. See qemu.org, ``interop/qmp-spec`` and ``interop/qemu-ga-ref``.
"""

from __future__ import annotations

import json
import secrets
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.providers.local import control_socket
from pytest_ephemeral.providers.local.control_socket import GuardAddress

#: The file with QEMU's exit status, beside a machine's sockets, once QEMU has ended.
ENDED: Final = "ended"


class MachineError(EphemeralError):
    """A machine refuses a request, or does not answer."""


class MachineConnection:
    """A connection to a socket of a machine, for lines of JSON.

    Args:
        id: The machine's id, for messages.
        folder: The folder of the socket.
        name: The socket's name.
        timeout: Seconds that each answer may take.
    """

    def __init__(self, id: str, folder: Path, name: str, timeout: float) -> None:
        self.id, self.timeout, self.name = id, timeout, name
        self._socket = control_socket.connect(GuardAddress(id, folder, name))
        self._received = b""
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def pid(self) -> int:
        """The process id of the peer; on Linux only."""
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int(struct.unpack("3i", credentials)[0])

    def send(self, message: Mapping[str, Any], before: bytes = b"") -> None:
        """Send one object.

        Args:
            message: The object.
            before: Bytes to send before it.
        """
        try:
            self._socket.settimeout(self.timeout)
            self._socket.sendall(before + json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise self._lost(error) from error

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next object; lines that are not objects are skipped.

        Raises:
            MachineError: None came before the deadline, or the machine is gone.
        """
        while True:
            line, end, rest = self._received.partition(b"\n")
            if end:
                self._received = rest
                try:
                    found = json.loads(line.rpartition(b"\xff")[2])
                except ValueError:
                    continue
                if isinstance(found, dict):
                    return found
                continue
            try:
                self._socket.settimeout(max(0.001, deadline - time.monotonic()))
                data = self._socket.recv(1 << 16)
            except OSError as error:
                raise self._lost(error) from error
            if not data:
                raise self._lost(EOFError("it has closed the connection"))
            self._received += data

    def call(self, command: str, **arguments: Any) -> Any:
        """Execute a command, and return its result.

        Raises:
            MachineError: The command is refused, or not answered in time.
        """
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        self.send({"execute": command, "arguments": named})
        return self._receive_return(command)

    def _receive_return(self, command: str) -> Any:
        deadline = time.monotonic() + self.timeout
        while True:
            answer = self.receive(deadline)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                reason = answer["error"].get("desc", answer["error"])
                raise MachineError(f"{self.id}: {command} was refused: {reason}")
            self._events.append(answer)

    def next_event(self, kind: str, timeout: float) -> dict[str, Any]:
        """The data of the next event of a kind.

        Args:
            kind: QEMU's name of the event.
            timeout: Seconds to wait for it.

        Raises:
            MachineError: None came in time.
        """
        deadline = time.monotonic() + timeout
        while True:
            event = self._events.pop(0) if self._events else self.receive(deadline)
            if event.get("event") == kind:
                data: dict[str, Any] = event.get("data", {})
                return data

    def give(self, file: socket.socket, name: str) -> None:
        """Pass an open socket to QEMU, which can use it as ``fd:NAME`` from then on.

        Raises:
            MachineError: QEMU refuses it.
        """
        # The descriptor must arrive together with this command, and with no other data.
        command = {"execute": "getfd", "arguments": {"fdname": name}}
        try:
            socket.send_fds(self._socket, [json.dumps(command).encode()], [file.fileno()])
        except OSError as error:
            raise self._lost(error) from error
        self._receive_return("getfd")

    def _lost(self, error: Exception) -> MachineError:
        return MachineError(
            f"the {self.name} of {self.id} does not answer: {error or type(error).__name__}"
        )


def open_monitor(id: str, folder: Path, timeout: float = 60.0) -> MachineConnection:
    """Connect to QEMU's monitor; wait until it answers.

    Raises:
        MachineError: It does not answer in time.
    """
    connection = _connect(id, folder, "monitor", timeout)
    try:
        connection.receive(time.monotonic() + timeout)  # its greeting
        connection.call("qmp_capabilities")
    except BaseException:
        connection.close()
        raise
    return connection


def open_agent(
    id: str, folder: Path, timeout: float = 60.0, each: float = 10.0
) -> MachineConnection:
    """Connect to the guest agent; wait until the guest has started it.

    Args:
        id: The machine's id.
        folder: The folder of its sockets.
        timeout: Seconds to wait for an answer.
        each: Seconds after which a request is repeated: one that is sent too early is lost.

    Raises:
        MachineError: It does not answer in time.
    """
    deadline = time.monotonic() + timeout
    while True:
        connection = _connect(id, folder, "agent", timeout)
        token = secrets.randbits(48)
        try:
            # The byte 0xff is not JSON: it ends an unfinished request of another client.
            connection.send({"execute": "guest-sync", "arguments": {"id": token}}, before=b"\xff")
            limit = min(deadline, time.monotonic() + each)
            while connection.receive(limit).get("return") != token:
                pass
        except MachineError:
            connection.close()
            if time.monotonic() > deadline:
                raise MachineError(
                    f"the guest agent of {id} does not answer within {timeout:g} s. The image "
                    "needs it: install the package qemu-guest-agent in it"
                ) from None
            continue
        except BaseException:
            connection.close()
            raise
        connection.timeout = 60.0
        return connection


def open_helper(id: str, folder: Path, timeout: float = 60.0) -> MachineConnection:
    """Connect to the port of the restore helper; see ``restore``."""
    return _connect(id, folder, "restore", timeout)


def _connect(id: str, folder: Path, name: str, timeout: float) -> MachineConnection:
    deadline = time.monotonic() + timeout
    while True:
        try:
            return MachineConnection(id, folder, name, timeout)
        except OSError as error:
            if (folder / ENDED).exists():
                raise MachineError(f"the {name} of {id} is not there: QEMU has ended") from error
            if time.monotonic() > deadline or not folder.is_dir():
                raise MachineError(f"the {name} of {id} is not there: {error}") from error
        time.sleep(0.002)
