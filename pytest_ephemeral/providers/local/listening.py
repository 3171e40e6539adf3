"""List the TCP sockets of this machine that listen."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_LISTEN: Final = 10

# sock_diag(7). /proc/net/tcp lists all connections: with thousands of them, reading it takes tens
# of milliseconds; this takes less than one.
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST_DUMP: Final = 0x301
_DONE, _ERROR = 3, 2
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBxI48x")
#: The family, the ports and addresses, and the inode.
_SOCKET: Final = struct.Struct("=B3x2s2s16s16s12x16xI")


def find_listening_sockets() -> dict[str, tuple[str, int]]:
    """The address and port of each listening TCP socket, by its inode."""
    try:
        return dict(_ask_kernel())
    except OSError:
        return dict(_read_proc())


def _ask_kernel() -> Iterator[tuple[str, tuple[str, int]]]:
    if sys.platform != "linux":
        raise OSError("only Linux has netlink")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(5.0)
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << _LISTEN)
            size = _HEADER.size + len(request)
            header = _HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 0, 0)
            kernel.sendto(header + request, (0, 0))
            for message in _messages(kernel):
                found, port, _, address, _, inode = _SOCKET.unpack_from(message)
                length = 4 if found == socket.AF_INET else 16
                host = socket.inet_ntop(found, address[:length]).removeprefix("::ffff:")
                yield str(inode), (host, int.from_bytes(port))


def _messages(kernel: socket.socket) -> Iterator[bytes]:
    """All messages of one answer."""
    while True:
        data = kernel.recv(1 << 16)
        while data:
            size, kind, *_ = _HEADER.unpack_from(data)
            if kind == _DONE:
                return
            if kind == _ERROR:
                raise OSError("the kernel does not report which sockets listen")
            yield data[_HEADER.size : size]
            data = data[(size + 3) & ~3 :]


def _read_proc() -> Iterator[tuple[str, tuple[str, int]]]:
    """The listening sockets from proc(5), if netlink is not allowed."""
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if int(fields[3], 16) == _LISTEN:
                host, _, port = fields[1].partition(":")
                yield fields[9], (_readable(host), int(port, 16))


def _readable(host: str) -> str:
    """Convert an address from /proc, which has 32-bit words in the machine's byte order."""
    words = [host[at : at + 8] for at in range(0, len(host), 8)]
    packed = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, packed).removeprefix("::ffff:")
