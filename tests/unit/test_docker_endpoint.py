"""The selection of the container engine, as the docker command does it, and its errors."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_ephemeral.errors import ConfigurationError, ElsewhereError, UnavailableError
from pytest_ephemeral.providers.docker import endpoint, identity
from pytest_ephemeral.providers.docker.engine import (
    Address,
    Engine,
    NoEngineError,
    describe_failure,
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, on a machine without an engine."""
    monkeypatch.setenv("HOME", str(tmp_path))
    usual = list(endpoint._candidates({}))
    monkeypatch.setattr(
        endpoint,
        "_candidates",
        lambda environ: [tmp_path / str(path).lstrip("/") for path in usual],
    )
    return tmp_path


def context(home: Path, name: str, endpoint: dict[str, object], *, tls: bool = False) -> None:
    """Write a context, as `docker context create` does."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    meta = home / ".docker" / "contexts" / "meta" / digest
    meta.mkdir(parents=True)
    text = json.dumps({"Name": name, "Endpoints": {"docker": endpoint}})
    (meta / "meta.json").write_text(text)
    if tls:
        (home / ".docker" / "contexts" / "tls" / digest / "docker").mkdir(parents=True)


def test_docker_host_overrides_the_current_context(home: Path) -> None:
    """The docker command has the same order."""
    context(home, "far", {"Host": "tcp://far:2376"})
    (home / ".docker" / "config.json").write_text('{"currentContext": "far"}')
    found = endpoint.find({"DOCKER_HOST": "tcp://near:2375"}).address
    assert found == Address("tcp://near:2375", "", verify=False, source="DOCKER_HOST")


def test_docker_host_uses_the_configured_certificates(home: Path) -> None:
    """DOCKER_TLS_VERIFY and DOCKER_CERT_PATH set them."""
    environ = {
        "DOCKER_HOST": "tcp://near:2376",
        "DOCKER_TLS_VERIFY": "1",
        "DOCKER_CERT_PATH": "/certificates",
    }
    found = endpoint.find(environ).address
    assert (found.certificates, found.verify) == ("/certificates", True)


def test_the_current_context_provides_address_and_certificates(home: Path) -> None:
    """The address in a record leads back to the same context and its certificates."""
    context(home, "far", {"Host": "tcp://far:2376", "SkipTLSVerify": True}, tls=True)
    (home / ".docker" / "config.json").write_text('{"currentContext": "far"}')
    engine = endpoint.find({})
    assert engine.address.url == "tcp://far:2376"
    assert engine.address.certificates.startswith(str(home))
    assert not engine.address.verify
    assert identity._find_trusted("tcp://far:2376") == engine.address


def test_untrusted_addresses_from_records_are_refused(tmp_path: Path, home: Path) -> None:
    """A host must be configured here, and a socket must not belong to another user."""
    for url in ("tcp://far:2376", "tcp://127.0.0.1:2375", "ssh://far", "nonsense"):
        with pytest.raises(ElsewhereError, match="neither DOCKER_HOST nor a docker context"):
            identity._find_trusted(url)
    stranger = tmp_path / "docker.sock"
    stranger.touch()
    assert identity._find_trusted(f"unix://{stranger}").url == f"unix://{stranger}"
    if os.getuid() == 0:
        os.chown(stranger, 4242, 4242)
        with pytest.raises(ElsewhereError):
            identity._find_trusted(f"unix://{stranger}")


def test_an_unknown_context_gets_a_suggestion(home: Path) -> None:
    """The error names the closest context."""
    context(home, "production", {"Host": "tcp://far:2376"})
    with pytest.raises(ConfigurationError, match=r"'prodution' .*Did you mean 'production'"):
        endpoint.find({"DOCKER_CONTEXT": "prodution"})


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ssh://", "not the address"),
        ("ssh://-oProxyCommand=true/x", "not the address"),
        ("far:2375", "not the address"),
    ],
)
def test_invalid_engine_addresses_are_refused(home: Path, url: str, said: str) -> None:
    """They are refused before any connection or command."""
    with pytest.raises(ConfigurationError, match=said):
        endpoint.find({"DOCKER_HOST": url})


def test_a_missing_engine_error_lists_what_was_tried(home: Path) -> None:
    """The message is one line, with the sockets tried and a remedy."""
    with pytest.raises(UnavailableError) as caught:
        endpoint.find({})
    text = str(caught.value)
    assert "\n" not in text
    assert "docker.sock (no such file or directory)" in text
    assert "podman.sock" in text
    assert "DOCKER_HOST" in text


@pytest.fixture
def podman(home: Path) -> Iterator[Path]:
    """The socket of Podman, the only engine."""
    path = next(path for path in endpoint._candidates({}) if path.name == "podman.sock")
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        # The length of a socket's path is limited, and the test's folder has a long one.
        here = os.open(path.parent, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)
        listener.listen()
        yield path


def test_podman_is_used_without_docker(podman: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Podman serves the same API on its own socket."""
    monkeypatch.setattr(endpoint, "_connect", lambda path: path.stat())
    assert endpoint.find({}).address.url == f"unix://{podman}"


def test_a_permission_error_explains_the_docker_group(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remedy is the same for a socket that was found or configured."""

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(endpoint, "_connect", refused)
    with pytest.raises(NoEngineError, match=r"no permission.*usermod -aG docker"):
        endpoint.find({})
    given = describe_failure(
        Address("unix:///run/docker.sock"), PermissionError(13, "Permission denied")
    )
    assert "usermod -aG docker" in given


@pytest.mark.parametrize(
    "ask", [lambda engine: engine.call("GET", "/version"), Engine.ping], ids=["call", "ping"]
)
def test_a_plain_web_server_is_not_taken_for_an_engine(
    home: Path, ask: Callable[[Engine], object]
) -> None:
    """Another program may use the engine's port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.recv(4096)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

        thread = threading.Thread(target=answer)
        thread.start()
        engine = Engine(Address(f"tcp://127.0.0.1:{server.getsockname()[1]}"))
        with pytest.raises(NoEngineError, match="not a container engine"):
            ask(engine)
        thread.join()
