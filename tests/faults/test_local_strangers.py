"""Other users, containers and environments of the machine can't affect an environment.

The tests check as another user, through /proc, and over the network.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pytest_ephemeral.environments import readiness
from pytest_ephemeral.errors import ReadinessError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.local import LocalProvider
from pytest_ephemeral.providers.local.prefix import require_trusted_root
from pytest_ephemeral.providers.local.supervisor import loop
from pytest_ephemeral.providers.local.supervisor.orders import Orders
from pytest_ephemeral.providers.local.tables import LocalTemplate
from pytest_ephemeral.providers.protocol import Order
from support.environments import make_environment
from support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

NOBODY = 65534

Launch = Callable[..., Environment]

#: Accepts connections, and never answers.
LISTEN = """
import socket, sys, threading
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
threading.Event().wait()
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets a state folder for this test."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))


@pytest.fixture
def launch() -> Iterator[Launch]:
    """A function that launches a command with a port; its environments are destroyed afterwards."""
    provider, launched = LocalProvider(), []

    def begin(command: str, port: int, *, ttl: float = 300) -> Environment:
        environment = make_environment(f"staging-{os.urandom(3).hex()}", ttl=ttl)
        template = LocalTemplate(name="staging", provider="local", command=command, port=port)
        launched.append(provider.launch(Order(environment=environment, template=template)))
        return launched[-1]

    yield begin
    for one in launched:
        provider.destroy(one)


def free_port() -> int:
    """A port without a listener on any address."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def as_user(user: int, act: Callable[[], object]) -> str:
    """The result of a function run by another user, as text; of an error, its type."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        said = "nothing"
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            said = str(act())
        except BaseException as error:  # noqa: BLE001 - sent to the parent
            said = type(error).__name__
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


@contextmanager
def listening(host: str, port: int, *, user: int) -> Iterator[None]:
    """A process of a user that accepts connections until the block ends."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.setuid(user)
            with socket.create_server((host, port)):
                os.write(writing, b"1")
                threading.Event().wait()
        finally:
            os._exit(1)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"1"
        yield
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def wait(environment: Environment, *, timeout: float) -> None:
    """Wait until an environment is ready, as the lifecycle does."""
    provider = LocalProvider()
    template = LocalTemplate(name="staging", provider="local", command="true")
    probes = readiness.probes_for(environment, template, provider, {})
    readiness.wait(environment, provider, probes, timeout=timeout, cancelled=threading.Event())


# -- readiness ---------------------------------------------------------------------------------


@as_root
def test_a_foreign_listener_on_the_address_is_not_accepted(launch: Launch) -> None:
    """Others can read the address in /proc/net/unix before the application listens."""
    port = free_port()
    environment = launch("exec sleep 1000", port)
    host = environment.endpoints["http"].host
    assert f"@pytest-ephemeral/address/{host}" in Path("/proc/net/unix").read_text()

    with listening(host, port, user=NOBODY), pytest.raises(ReadinessError) as caught:
        wait(environment, timeout=0.5)

    assert f"listens on {host}:{port}, which is not this environment" in str(caught.value)


def test_a_wildcard_listener_is_not_accepted_for_others(launch: Launch) -> None:
    """A listener like Node's ``listen(PORT)`` gets the connections of slower environments."""
    port = free_port()
    slow = launch("exec sleep 1000", port)
    everywhere = launch(f"exec {sys.executable} -c '{LISTEN}' 0.0.0.0 {port}", port)
    wait(everywhere, timeout=20)  # it listens on every address, including its own
    with socket.create_connection((slow.endpoints["http"].host, port), timeout=5):
        pass  # the wildcard listener answers at the other address

    with pytest.raises(ReadinessError, match=rf"0\.0\.0\.0:{port}, which is not this environment"):
        wait(slow, timeout=0.5)


def test_a_specific_address_takes_precedence_over_a_wildcard(launch: Launch) -> None:
    """The kernel connects to the application, so a wildcard listener does not prevent readiness."""
    port = free_port()
    shared = LISTEN.replace("[2])))", "[2])), reuse_port=True)")
    environment = launch(f"exec {sys.executable} -c '{shared}' $HOST $PORT", port)
    wait(environment, timeout=20)
    with socket.create_server(("0.0.0.0", port), reuse_port=True) as wildcard:
        wait(environment, timeout=20)
        wildcard.setblocking(False)
        with pytest.raises(BlockingIOError):
            wildcard.accept()


# -- access to the guard -----------------------------------------------------------------------


def test_a_guard_has_no_abstract_socket(launch: Launch) -> None:
    """Root in any container on the host's network could connect to one (CVE-2020-15257)."""
    environment = launch("exec sleep 1000", free_port())
    assert LocalProvider().status(environment).state == "running"

    listening = _listening_sockets(int(environment.handle["supervisor"]))

    assert listening
    assert not [path for path in listening if path.startswith("@")]
    assert stat.S_IMODE(Path(environment.handle["folder"]).stat().st_mode) == 0o700


def _listening_sockets(pid: int) -> list[str]:
    """The paths of a process's listening Unix sockets, from /proc/net/unix."""
    opened = [str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()]
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    accepting = [row for row in rows if int(row[3], 16) & 0x10000]  # Linux's __SO_ACCEPTCON
    return [row[7] for row in accepting if f"socket:[{row[6]}]" in opened]


@as_root
def test_another_user_cannot_connect_to_a_guard(launch: Launch, tmp_path: Path) -> None:
    """The environment's folder is closed to other users, and so is the socket in it."""
    environment = launch("exec sleep 1000", free_port())
    for folder in (tmp_path, *tmp_path.parents):  # all folders on the path are open except its own
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(0o755)
    (tmp_path / "state" / "environments").chmod(0o755)
    (tmp_path / "state").chmod(0o755)
    address = f"/proc/self/fd/{os.open(environment.handle['folder'], os.O_PATH)}/control"

    with socket.socket(socket.AF_UNIX) as client:
        assert as_user(NOBODY, lambda: client.connect(address)) == "PermissionError"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)  # its own user can connect


@as_root
def test_a_folder_of_another_user_is_left_alone(launch: Launch, tmp_path: Path) -> None:
    """An unreadable folder beside ours is not listed, and our environment still is."""
    environment = launch("exec sleep 1000", free_port())
    theirs = tmp_path / "state" / "environments" / "staging-theirs"
    theirs.mkdir(mode=0o000)
    (theirs / "labels.json").write_text('{"pytest-ephemeral.id": "staging-theirs"}')
    os.chown(theirs, NOBODY, NOBODY)

    assert [one.id for one in LocalProvider().list_owned()] == [environment.id]
    assert theirs.exists()


@as_root
def test_each_user_has_its_own_image_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a setting, each user of a machine gets a root that belongs to that user."""
    monkeypatch.delenv("PYTEST_EPHEMERAL_PREFIX_ROOT", raising=False)
    users = (os.getuid(), 4242, 4243)
    before = {user: Path(f"/var/tmp/pytest-ephemeral-{user}").exists() for user in users}
    roots = {user: Path(as_user(user, require_trusted_root)) for user in users}
    assert len(set(roots.values())) == 3
    for user, root in roots.items():
        assert root.stat().st_uid == user
        if not before[user]:
            root.rmdir()


# -- clocks ------------------------------------------------------------------------------------


def test_a_clock_set_forward_ends_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard counts elapsed time, so a clock set three hours ahead changes no expiry."""
    wall = [time.time()]
    monkeypatch.setattr(loop.time, "time", lambda: wall[0])
    orders = Orders(id="x", variables={}, expires_at=wall[0] + 60, owner=os.getppid())
    supervisor = loop.Supervisor(orders)
    wall[0] += 3 * 3600

    assert supervisor._patience() > 30
    told = supervisor._status()
    assert told["expires_in"] == pytest.approx(60, abs=5)


def test_the_clock_of_an_environment_is_that_of_its_guard(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The expiry of an environment without a record is compared with that clock too."""
    environment = launch("exec sleep 1000", free_port())
    until(lambda: LocalProvider().status(environment).state == "running")

    there = LocalProvider().clock(environment)

    assert abs(there - datetime.now(UTC)) < timedelta(seconds=5)
    (owned,) = LocalProvider().list_owned()
    assert owned.seen_at is not None
    assert abs(owned.seen_at - datetime.now(UTC)) < timedelta(seconds=5)
