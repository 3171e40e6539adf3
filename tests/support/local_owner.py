"""A process that owns an environment of the local provider."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from pytest_ephemeral import machine, models
from pytest_ephemeral.labels import ENVIRONMENT_VARIABLE
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.local import LocalProvider
from pytest_ephemeral.providers.local.supervisor.processes import find_marked
from support.environments import make_environment
from support.processes import command_of

#: Launches the template, prints the environment, runs the code of the third argument, and waits.
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


#: A command with a daemon: forked twice, in its own session, without its parent.
DAEMON = "(setsid sleep 1000 &) ; exec sleep 1000"


Own = Callable[..., tuple["subprocess.Popen[str]", Environment]]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a state folder of this test."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))


@pytest.fixture
def own() -> Iterator[Own]:
    """Start a process that launches an environment; return both, the latter as recorded before."""
    with ExitStack() as cleanup:

        def start(
            command: str = DAEMON, *, then: str = "", within: Sequence[str] = ()
        ) -> tuple[subprocess.Popen[str], Environment]:
            environment = describe()
            record = models.encode(environment).decode()
            process = cleanup.enter_context(
                subprocess.Popen(
                    [*within, sys.executable, "-c", OWNER, record, command, then],
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


def describe() -> Environment:
    """An environment that is not launched yet."""
    return make_environment(f"staging-{secrets.token_hex(3)}", ttl=300)


def read_launched(process: subprocess.Popen[str]) -> Environment:
    assert process.stdout is not None
    return models.decode(process.stdout.readline().encode(), Environment)


def labelled_processes(environment: Environment) -> list[int]:
    return find_marked(f"{ENVIRONMENT_VARIABLE}={environment.id}")


def is_running(environment: Environment) -> bool:
    """Whether its guard, its command and the daemon run, without a shell between them."""
    commands = [command_of(pid) for pid in labelled_processes(environment)]
    return len(commands) == 3 and commands.count(b"sleep\0001000\0") == 2


def find_remains(environment: Environment) -> list[object]:
    folder = machine.state_directory() / "environments" / environment.id
    return [*labelled_processes(environment), *(path for path in [folder] if path.exists())]
