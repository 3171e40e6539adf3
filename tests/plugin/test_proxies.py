"""With a proxy, clients in tests reach environments directly, as probes do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

#: A proxy that records all requests, and refuses them.
PROXY = """
import socket, sys
server = socket.create_server(("127.0.0.1", 0))
asked = open(sys.argv[1], "w")
print(server.getsockname()[1], flush=True)
while True:
    connection, _ = server.accept()
    print(connection.recv(65536).split(b"\\r")[0].decode(), file=asked, flush=True)
    connection.sendall(b"HTTP/1.1 502 Bad Gateway\\r\\nContent-Length: 0\\r\\n\\r\\n")
    connection.close()
"""

TESTS = """
import subprocess, sys, urllib.request
import httpx, requests

ASK = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())"

def test_requests(ephemeral_url): assert requests.get(ephemeral_url).text == "plain"
def test_session(ephemeral_http): assert ephemeral_http.get("/").text == "plain"
def test_urllib(ephemeral_url): assert urllib.request.urlopen(ephemeral_url).read() == b"plain"
def test_httpx(ephemeral_url): assert httpx.get(ephemeral_url).text == "plain"
def test_fresh(ephemeral_env_function):
    assert requests.get(ephemeral_env_function.url).text == "plain"
def test_child(ephemeral_url):
    command = [sys.executable, "-c", ASK, ephemeral_url]
    assert subprocess.check_output(command, text=True) == "plain\\n"
def test_others_still_use_it(ephemeral_url):
    assert requests.get("http://elsewhere.invalid/").status_code == 502
"""


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Run a proxy that all clients must use, and return the file of its requests."""
    asked = tmp_path / "asked"
    process = subprocess.Popen(
        [sys.executable, "-c", PROXY, asked], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    port = int(process.stdout.readline())
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    yield asked
    process.kill()
    process.communicate()


@pytest.mark.parametrize("arguments", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_clients_bypass_the_proxy(project, proxy, arguments):
    """pytest, workers and child processes bypass it; other hosts still use the proxy."""
    project.write(test_it=TESTS)
    output = project.run_tests(*arguments)
    assert "7 passed" in output
    assert proxy.read_text().splitlines() == ["GET http://elsewhere.invalid/ HTTP/1.1"]


def test_proxy_variables_are_restored(project, proxy, run):
    """A process that continues after the run has its old variables."""
    project.write(
        test_it="import requests\ndef test_it(ephemeral_url): requests.get(ephemeral_url)"
    )
    before = dict(os.environ)
    run().assert_outcomes(passed=1)
    now = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    assert now == {name: before[name] for name in now}
    assert "no_proxy" not in now


def test_clients_reach_an_early_environment_without_the_proxy(project, proxy):
    """The environment is reached in ``pytest_sessionstart``, before collection."""
    project.write(
        conftest="""
import requests
from pytest_ephemeral import early_environment
def pytest_sessionstart(session):
    if environment := early_environment(session.config):
        assert requests.get(environment.url).text == "plain"
""",
        test_it="def test_it(): pass",
    )
    project.run_tests()
    assert proxy.read_text() == ""


def test_a_command_reaches_its_environment(project, proxy):
    """``pytest-ephemeral with`` sets the variables for the command."""
    ask = "import os, requests; print(requests.get(os.environ['EPHEMERAL_URL']).text)"
    done = project.command("with", project.one, "--", sys.executable, "-c", ask)
    assert done.stdout == "plain\n", done.stderr
    assert proxy.read_text() == ""
