"""Hints: the cause of a failed readiness probe, as soon as it is known."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pytest_ephemeral.durations import Duration
from pytest_ephemeral.environments import hints, readiness
from pytest_ephemeral.errors import LaunchError, ReadinessError
from pytest_ephemeral.providers.local import network
from pytest_ephemeral.providers.protocol import Status
from pytest_ephemeral.tables import Ready
from unit.test_readiness import Scripted, answering, environment, wait


@pytest.mark.parametrize(
    ("status", "log", "said"),
    [
        (400, "Invalid HTTP_HOST header: '127.4.9.3:8080'.", "ALLOWED_HOSTS"),
        (500, "sqlite3.OperationalError: unable to open database file", r"write to \$STATE"),
        (500, "OSError: [Errno 30] Read-only file system: '/x'", r"write to \$STATE"),
        (404, "", "change the path in `ready.http`"),
        (400, "", "reject the host name"),
        (401, "", "needs a login"),
        (503, "", "raise `ready.timeout`"),
    ],
)
def test_a_readiness_timeout_names_the_cause(status: int, log: str, said: str) -> None:
    """The hint also says what to change."""
    provider = Scripted()
    provider.text = log + "\n"
    with answering(status) as env, pytest.raises(ReadinessError, match=f"hint: .*{said}"):
        wait(env, Ready(http="/healthz", timeout=Duration(0.1)), provider)


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare, of util-linux")
def test_a_disabled_loopback_interface_is_reported() -> None:
    """The launch, the probe and ``doctor`` report it: no process can be reached."""
    script = """
from pytest_ephemeral.environments import hints
from pytest_ephemeral.environments.probes import TcpProbe
from pytest_ephemeral.errors import LaunchError
from pytest_ephemeral.models import Endpoint
from pytest_ephemeral.providers.local import doctor, network
print(*hints._of_probes([TcpProbe(Endpoint(host="127.0.0.1", port=9), False).look(1)]))
print(next(one for one in doctor.checks() if "loopback" in one.name))
try:
    network.claim({"http": 8080})
except LaunchError as error:
    print(error)
"""
    argv = ["unshare", "--net", "--map-root-user", sys.executable, "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if "unshare failed" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip("this machine allows no network namespaces")
    probe, check, launch = done.stdout.splitlines()
    assert "no route" in probe
    assert "ok=False" in check
    assert launch == f"the loopback interface is down: {network.LOOPBACK_CURE}"


def test_hints_are_shown_while_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong listener or a constant 404 is reported before the timeout."""
    monkeypatch.setattr(readiness, "FIRST_HINT", 0.05)
    provider = Scripted()
    provider.advice = "it listens on 127.0.0.1:5000"
    told: list[str] = []
    cancelled = threading.Event()

    def tell(text: str) -> None:
        told.append(text)
        if "hint: " in text:
            cancelled.set()  # long before the timeout of a minute

    with answering(404) as env, pytest.raises(LaunchError, match="no longer needed"):
        wait(env, Ready(http="/x"), provider, tell=tell, cancelled=cancelled)
    assert "hint: it listens on 127.0.0.1:5000" in told[-1]
    assert "change the path" in told[-1]


def test_probe_requests_do_not_hide_startup_errors() -> None:
    """Many lines of an access log must not displace the actual error."""
    provider = Scripted()
    access = '127.0.0.1 - - "GET /healthz HTTP/1.1" 503 -\n'
    provider.text = "migration 7 failed: no such column\n" + access * 60
    with answering(503) as env, pytest.raises(ReadinessError) as caught:
        wait(env, Ready(http="/healthz", timeout=Duration(0.1)), provider)
    assert "migration 7 failed" in str(caught.value)
    assert "GET /healthz HTTP/1.1" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ('"GET /healthz HTTP/1.1" 200', False),
        ("GET /healthz 200 1ms", False),
        ("GET /healthz?x=1", False),
        ("GET /healthz", False),
        ("GET /healthz/deep 500", True),
        ("POST /healthz 200", True),
        ("booted", True),
    ],
)
def test_only_probe_requests_are_removed_from_logs(line: str, kept: bool) -> None:
    """Every other line may be the cause."""
    assert bool(hints.without_probes([line], "/healthz")) is kept


def test_a_daemonizing_command_gets_a_foreground_hint() -> None:
    """It exits with status 0, but no process is left."""
    provider = Scripted()
    provider.state = Status("exited", "app exited with status 0 after 0.1 s")
    with pytest.raises(LaunchError, match="stay in the foreground"):
        wait(environment(1), Ready(tcp=True), provider)


@pytest.fixture
def tls_port(tmp_path: Path) -> Iterator[int]:
    """The port of a server that speaks only TLS."""
    key = tmp_path / "key.pem"
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x"]
    made = tmp_path / "certificate.pem"
    subprocess.run([*openssl, "-keyout", key, "-out", made], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, suppress(ssl.SSLError, OSError):
                        context.wrap_socket(connection, server_side=True).close()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def test_a_tls_port_gets_an_https_hint(tls_port: int) -> None:
    """Otherwise the error would be a reset connection or an invalid response."""
    with pytest.raises(ReadinessError, match=f"port {tls_port} speaks TLS: call it https"):
        wait(environment(tls_port), Ready(http="/", timeout=Duration(0.2)), Scripted())
