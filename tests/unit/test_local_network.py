"""Loopback addresses: exclusive claims, and errors that name the user of a port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_ephemeral.errors import LaunchError
from pytest_ephemeral.providers.local import listening, network

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 for itself"
)

HOLD = """
import sys
from pytest_ephemeral.providers.local import network
holder = network._hold(f"address/{sys.argv[1]}")
print("held" if holder else "taken", flush=True)
sys.stdin.readline()
"""


def _holding(host: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, host],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_an_address_claim_is_exclusive_until_released() -> None:
    """Another process can claim it after its holder has released it or was killed."""
    claim = network.claim({"http": 18481})
    with claim.holder, _holding(claim.host) as other:
        assert other.communicate("\n")[0] == "taken\n"
    with _holding(claim.host) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert network._hold(f"address/{claim.host}") is None
        other.kill()
    again = network._hold(f"address/{claim.host}")
    assert again is not None
    again.close()


def test_a_claim_contains_the_requested_ports() -> None:
    """The address is outside of the ranges that other programs usually use."""
    claim = network.claim({"http": 18482, "admin": 18483})
    with claim.holder:
        assert claim.ports == {"http": 18482, "admin": 18483}
        assert 64 <= int(claim.host.split(".")[1]) <= 254


def test_claims_never_share_free_ports() -> None:
    """They are reserved even before a process listens on them, until the claim is closed."""
    claims = [network.claim({"http": 80, "admin": 80}, free_port=True) for _ in range(20)]
    try:
        ports = [port for claim in claims for port in claim.ports.values()]
        assert len(set(ports)) == 40
        assert len({claim.host for claim in claims}) == 20
        assert all(network._is_held(f"port/{port}") for port in ports)
    finally:
        for claim in claims:
            claim.close()
    assert not any(network._is_held(f"port/{port}") for port in ports)


@pytest.mark.parametrize(
    ("family", "host"),
    [(socket.AF_INET, "127.4.5.6"), (socket.AF_INET, ""), (socket.AF_INET6, "::")],
)
def test_a_port_with_a_listener_is_not_free(
    family: socket.AddressFamily, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listener's address does not matter, as the application may listen on all addresses."""
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(network, "_FREE_PORTS", range(port, port + 1))
        with pytest.raises(LaunchError, match="no free port was found"):
            network.claim({"http": 80}, free_port=True)


def test_free_ports_lie_below_the_ephemeral_port_range() -> None:
    """Otherwise, the kernel could assign one to a connection before the application starts."""
    low, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert int(low) >= network._FREE_PORTS.stop


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_taken_port_is_reported_with_its_process(host: str) -> None:
    """The message names the port, the process that listens on it, and a remedy."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as server:
        try:
            server.bind((host, 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(LaunchError) as caught:
            network.claim({"http": port})
    message = str(caught.value)
    assert f"port {port} is taken" in message
    assert f"(pid {os.getpid()})" in message
    assert "another port" in message


def test_a_port_taken_on_another_address_can_be_claimed() -> None:
    """A server on 127.0.0.1 does not affect the environment's own address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        claim = network.claim({"http": port})
        claim.holder.close()
        assert claim.ports == {"http": port}


def test_listeners_are_named_with_address_and_port() -> None:
    """Only listeners of the given processes are returned, here of this process."""
    with socket.create_server(("127.77.1.2", 0)) as server:
        port = server.getsockname()[1]
        found = network.listeners([os.getpid()])
    assert ("127.77.1.2", port) in {(one.host, one.port) for one in found}
    assert all(f"(pid {os.getpid()}) listens on" in str(one) for one in found)


def test_claims_on_a_shared_address_use_free_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS, only 127.0.0.1 can be used, so the template's ports may be in use."""
    monkeypatch.setattr(network, "has_own_addresses", lambda: False)
    claim = network.claim({"http": 80, "admin": 443})
    with claim.holder:
        assert claim.host == "127.0.0.1"
        assert len({80, 443, *claim.ports.values()}) == 4


def test_kernel_query_and_proc_report_the_same_listeners() -> None:
    """The sockets listen on one IPv4 address, on all IPv4 addresses, and on IPv6."""
    with (
        socket.create_server(("127.4.5.6", 0)) as one,
        socket.create_server(("", 0)) as every,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
    ):
        asked, read = dict(listening._ask_kernel()), dict(listening._read_proc())
        for sock in (one, every, six):
            inode = str(os.fstat(sock.fileno()).st_ino)
            assert asked[inode] == read[inode] == sock.getsockname()[:2]
