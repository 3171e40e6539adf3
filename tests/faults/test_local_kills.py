"""Whoever is killed, and whenever: what ran on this machine ends, or is found and ended."""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pytest_ephemeral import machine, models
from pytest_ephemeral.labels import ENVIRONMENT_VARIABLE
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.local import LocalProvider, guard
from pytest_ephemeral.providers.local.supervisor.processes import marked
from support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

#: Launches the template, shows the environment, does what the third argument says, and waits.
OWNER = """
import os, sys
from pytest_ephemeral import models
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.protocol import Order
from pytest_ephemeral.providers.local import LocalProvider
from pytest_ephemeral.providers.local.tables import LocalTemplate

environment = models.decode(sys.argv[1].encode(), Environment)
template = LocalTemplate(name="staging", command=sys.argv[2], port=18491)
print("launching", flush=True)
launched = LocalProvider().launch(Order(environment=environment, template=template))
print(models.encode(launched).decode().replace("\\n", ""), flush=True)
exec(sys.argv[3])
sys.stdin.readline()
"""

#: A daemon: forked twice, in a session of its own, its parent gone.
DAEMON = "(setsid sleep 1000 &) ; exec sleep 1000"
#: Leaves a child that lives on, with all that its parent had open.
FORK = "pid = os.fork(); pid and print(pid, flush=True)"

Own = Callable[..., tuple["subprocess.Popen[str]", Environment]]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of this test."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))


@pytest.fixture
def own() -> Iterator[Own]:
    """Start a process that launches an environment: it, and the environment's record before."""
    with ExitStack() as cleanup:

        def start(
            command: str = DAEMON, *, then: str = ""
        ) -> tuple[subprocess.Popen[str], Environment]:
            environment = Environment(
                id=f"staging-{secrets.token_hex(3)}",
                template="staging",
                provider="local",
                created_at=datetime.now(UTC),
                expires_at=datetime.now(UTC) + timedelta(minutes=5),
                owner=machine.this_owner("faults"),
            )
            record = models.encode(environment).decode()
            process = cleanup.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", OWNER, record, command, then],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            cleanup.callback(process.kill)
            cleanup.callback(LocalProvider().destroy, environment)
            assert process.stdout is not None
            assert process.stdout.readline() == "launching\n"
            return process, environment

        yield start


def _launched(process: subprocess.Popen[str]) -> Environment:
    assert process.stdout is not None
    return models.decode(process.stdout.readline().encode(), Environment)


def _marked(environment: Environment) -> list[int]:
    return marked(f"{ENVIRONMENT_VARIABLE}={environment.id}")


def _left(environment: Environment) -> list[object]:
    folder = machine.state_directory() / "environments" / environment.id
    return [*_marked(environment), *(path for path in [folder] if path.exists())]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_its_owner_is_killed(own: Own, number: signal.Signals) -> None:
    """Within two seconds nothing is left, daemons included."""
    process, _ = own()
    environment = _launched(process)
    until(lambda: len(_marked(environment)) == 3)
    process.send_signal(number)
    until(lambda: not _left(environment), within=2)


def test_its_owner_is_killed_while_a_child_of_it_lives_on(own: Own) -> None:
    """A forked child holds the lifeline open; the guard sees the owner's death all the same."""
    process, _ = own(then=FORK)
    environment = _launched(process)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        until(lambda: len(_marked(environment)) == 3)
        process.kill()
        until(lambda: not _left(environment), within=2)
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("attempt", range(8))
def test_its_owner_is_killed_while_launching(own: Own, attempt: int) -> None:
    """At whatever instruction: it all ends by itself, or is known to be abandoned and swept."""
    process, environment = own()
    pause = random.uniform(0, 0.04)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(pause)
    process.kill()
    process.wait()
    until(lambda: not _marked(environment), within=2)
    provider = LocalProvider()
    until(lambda: all(owned.abandoned or not _left(environment) for owned in provider.owned()))
    for owned in provider.owned():
        provider.sweep(owned)
    assert _left(environment) == []


def test_its_guard_is_killed(own: Own) -> None:
    """Its processes die with it; a daemon and the folder are found by whoever destroys."""
    process, _ = own()
    environment = _launched(process)
    until(lambda: len(_marked(environment)) == 3)
    os.kill(int(environment.handle["supervisor"]), signal.SIGKILL)
    provider = LocalProvider()
    until(lambda: provider.status(environment).state == "gone")
    until(lambda: len(_marked(environment)) == 1, within=2)
    (owned,) = provider.owned()
    assert owned.abandoned
    provider.destroy(environment)
    assert _left(environment) == []


def test_its_guard_is_told_to_go(own: Own) -> None:
    """SIGTERM, as from a system that shuts down: it takes everything with it."""
    process, _ = own()
    environment = _launched(process)
    until(lambda: len(_marked(environment)) == 3)
    os.kill(int(environment.handle["supervisor"]), signal.SIGTERM)
    until(lambda: not _left(environment), within=2)


def test_its_guard_is_stuck(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard that is stopped and answers nobody is destroyed with all it guards."""
    monkeypatch.setattr(guard, "_END_TIME", 0.3)
    monkeypatch.setattr(guard, "_ANSWER_TIME", 0.3)
    process, _ = own()
    environment = _launched(process)
    until(lambda: len(_marked(environment)) == 3)
    os.kill(int(environment.handle["supervisor"]), signal.SIGSTOP)
    provider = LocalProvider()
    assert "does not answer" in provider.status(environment).detail
    provider.destroy(environment)
    assert _left(environment) == []


def test_a_file_of_someone_else_is_never_removed(own: Own, tmp_path: Path) -> None:
    """A record that was tampered with can't lead destroying to another folder."""
    process, environment = own()
    launched = _launched(process)
    precious = tmp_path / "precious"
    precious.mkdir()
    for folder in (precious, tmp_path / "environments" / ".." / "precious", Path("/")):
        record = models.encode(launched).decode().replace(launched.handle["folder"], str(folder))
        LocalProvider().destroy(models.decode(record.encode(), Environment))
        assert precious.is_dir()
    assert _left(environment) == []
