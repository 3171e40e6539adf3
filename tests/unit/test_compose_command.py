"""The compose command, run to its end or until it is cancelled."""

import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pytest_ephemeral.errors import LaunchError
from pytest_ephemeral.providers.compose.command import CommandResult, Compose
from pytest_ephemeral.providers.docker.engine import Address
from support.waiting import until


def run(folder: Path, script: str, cancelled: threading.Event) -> CommandResult:
    """Run a script in place of the compose command."""
    command = folder / "compose"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o700)
    return Compose((str(command),)).run(
        ["up"],
        project="shop",
        folder=folder,
        variables={},
        address=Address("unix:///nowhere"),
        cancelled=cancelled,
    )


def test_all_output_of_a_slow_command_is_kept(tmp_path: Path) -> None:
    """Polling the command must not lose parts of its output."""
    said = run(tmp_path, "echo one; sleep 0.2; echo two; echo three >&2; exit 3", threading.Event())
    assert said == CommandResult(3, "one\ntwo\n", "three\n")


def test_cancelling_kills_the_command_and_its_children(tmp_path: Path) -> None:
    """The command's child processes are killed, too."""
    cancelled, pid = threading.Event(), tmp_path / "pid"

    def cancel() -> None:
        while not pid.exists():
            time.sleep(0.01)
        cancelled.set()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(LaunchError, match="the run is ending"):
        run(tmp_path, f"sleep 60 & echo $! > {pid}.new; mv {pid}.new {pid}; wait", cancelled)
    canceller.join()
    until(lambda: not is_alive(pid.read_text().strip()), within=10)


def is_alive(pid: str) -> bool:
    """Whether a process runs; a zombie does not."""
    with suppress(OSError):
        return Path("/proc", pid, "stat").read_text().split()[2] != "Z"
    return False
