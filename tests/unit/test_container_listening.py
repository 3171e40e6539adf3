"""Listening sockets of a container's network, read from the kernel's tables."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pytest_ephemeral.providers.docker.listening import list_listeners

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0
   1: 0100007F:2328 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0
   2: 020011AC:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3 1 0
   3: 020011AC:0051 010011AC:C3A2 01 00000000:00000000 00:00000000 00000000     0        0 4 1 0
"""
TABLE_6 = """\
  sl  local_address                         remote_address                        st tx_queue
   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 0:0
   1: 00000000000000000000000001000000:2328 00000000000000000000000000000000:0000 0A 0:0
   2: 0000000000000000FFFF00000100007F:2329 00000000000000000000000000000000:0000 0A 0:0
   3: 0000000000000000FFFF0000020011AC:0050 00000000000000000000000000000000:0000 0A 0:0
"""


@pytest.mark.parametrize(("table", "ports"), [(TABLE, {8080, 80}), (TABLE_6, {8080, 80})])
def test_list_listeners_finds_only_reachable_ports(table: str, ports: set[int]) -> None:
    """Connections and listeners on loopback are left out, for IPv4 and IPv6."""
    assert list_listeners(table) == ports


def can_bind(address: str) -> bool:
    with socket.socket(socket.AF_INET6) as listener:
        try:
            listener.bind((address, 0))
        except OSError:
            return False
    return True


V6 = [address for address in ("::", "::1", "::ffff:127.0.0.1") if can_bind(address)]


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", *V6])
def test_list_listeners_reads_the_kernel_table(address: str) -> None:
    """The test's own sockets are looked up in the same way as a container's."""
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(kind) as listener:
        listener.bind((address, 0))
        listener.listen()
        table = "tcp6" if ":" in address else "tcp"
        found = list_listeners(Path(f"/proc/self/net/{table}").read_text())
        is_open = address in {"0.0.0.0", "::"}
        assert (listener.getsockname()[1] in found) is is_open
