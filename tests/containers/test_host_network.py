"""Root in a container on the host's network sees the guard's socket, but can't connect to it."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.docker import endpoint
from pytest_ephemeral.providers.local import LocalProvider
from pytest_ephemeral.providers.local.tables import LocalTemplate
from pytest_ephemeral.providers.protocol import Order
from support import engine_images
from support.environments import make_environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="abstract names: only on Linux")

#: Asks every listener on a Unix socket of this network namespace to run a command, and prints the
#: names of the sockets that accepted the request.
ATTACK = """
import json, socket, sys
request = json.dumps({"do": "run", "argv": ["touch", sys.argv[1]]}).encode() + b"\\n"
rows = [row.split(None, 7) for row in open("/proc/net/unix").read().splitlines()[1:]]
names = {row[7] for row in rows if len(row) > 7}
took = []
for name in sorted(names):
    address = "\\0" + name[1:] if name.startswith("@") else name
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as client:
            client.settimeout(2)
            try:
                client.connect(address)
                client.sendall(request)
            except OSError:
                continue
            took.append(name)
print(json.dumps({"seen": sorted(names), "took": took}))
"""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Environment]:
    """A local environment that only sleeps."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))
    provider, made = LocalProvider(), make_environment(f"staging-{os.urandom(3).hex()}", ttl=300)
    template = LocalTemplate(name="staging", provider="local", command="sleep 1000", port=18491)
    yield provider.launch(Order(environment=made, template=template))
    provider.destroy(made)


def run_on_host_network(image: str, argv: list[str]) -> str:
    """The output of root's command in a container on this machine's network."""
    engine = endpoint.find()
    body = {
        "Image": image,
        "Cmd": argv,
        "User": "0",
        "Tty": True,
        "HostConfig": {"NetworkMode": "host"},
    }
    id = engine.call("POST", "/containers/create", body=body)["Id"]
    try:
        engine.call("POST", f"/containers/{id}/start")
        status = engine.call("POST", f"/containers/{id}/wait", timeout=120)["StatusCode"]
        with engine.stream("GET", f"/containers/{id}/logs", query={"stdout": True}) as answer:
            output = answer.read().decode()
        assert status == 0, output
        return output
    finally:
        engine.call("DELETE", f"/containers/{id}", query={"force": True})


def test_a_host_network_container_cannot_reach_a_guard(
    environment: Environment, tmp_path: Path
) -> None:
    """Such a container could connect to an abstract socket, as in CVE-2020-15257."""
    image = engine_images.python()
    assert LocalProvider().status(environment).state == "running"
    witness = tmp_path / "witness"
    decoy = f"pytest-ephemeral-test-{os.urandom(4).hex()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{decoy}".encode())  # shows that the attack itself works
        listener.listen()
        found = json.loads(run_on_host_network(image, ["python3", "-c", ATTACK, str(witness)]))
    # The container sees the path of the guard's socket, which does not exist inside it.
    ours = [name for name in found["seen"] if name.endswith("/control") or "ephemeral/" in name]
    assert ours
    assert f"@{decoy}" in found["took"]
    assert not set(ours) & set(found["took"])
    assert not [name for name in found["took"] if environment.id in name]
    assert not witness.exists()
    assert LocalProvider().status(environment).state == "running"
