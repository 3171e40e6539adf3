"""The same machine id, host name, store and folders, and another PID namespace: unknown, not gone.

That is a CI container with this machine's ``/etc/machine-id`` and host name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import processes
from support.plugin_project import PluginProject, end, make_project
from support.waiting import eventually

#: A PID namespace of one's own, for root and, where the kernel lets users, for everyone.
UNSHARE = ["unshare", "--fork", "--pid", "--mount-proc"]
if sys.platform == "linux" and os.geteuid():
    UNSHARE += ["--user", "--map-root-user"]


def refusal() -> str:
    """Why there can be no PID namespace here; empty when there can."""
    if sys.platform != "linux":
        return "PID namespaces: only on Linux"
    found = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    return found.stderr


pytestmark = pytest.mark.skipif(
    bool(refusal()), reason="this kernel lets this user make no PID namespace"
)

WAITS = """
from pathlib import Path
def test_waits(ephemeral_env):
    Path("waiting").touch()
    while not Path("looked").exists():
        time.sleep(0.02)
    assert get(ephemeral_env.url) == "plain"
"""


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PluginProject]:
    """A project whose only test waits until it is looked at."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    made = make_project(tmp_path, monkeypatch, tmp_path_factory)
    made.write(test_it=WAITS)
    yield made
    assert made.clean_within(30), made.traces()


def test_a_live_run_is_not_reaped_from_there(project: PluginProject) -> None:
    """Its owner's process id means nothing there, and stands for nobody or for someone else."""
    run = project.spawn("--ephemeral-env")
    try:
        assert eventually((project.folder / "waiting").exists, 40)
        before = set(project.processes())
        reap = [*UNSHARE, processes.PROGRAM, "reap", "--json"]
        there = processes.run(*reap, folder=project.folder)
        assert json.loads(there.stdout)["reaped"] == []
        assert before <= set(project.processes())
        (project.folder / "looked").touch()
        output = run.communicate(timeout=60)[0]
        assert run.returncode == 0, output
    finally:
        end(run)


#: What a chroot or a sandbox without ``/proc`` is like.
BLIND = [*UNSHARE, "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]


def test_where_processes_cannot_be_seen_nobody_is_gone(project: PluginProject) -> None:
    """A live owner was: the next ``reap`` would have taken its environment away."""
    look = """
from pytest_ephemeral import machine
own = machine.this_owner("run")
print(machine.is_alive(own), machine.is_gone(machine.process_of(own)))
"""
    found = subprocess.run(
        [*BLIND, sys.executable, "-c", look], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["None", "False"]


def test_where_processes_cannot_be_seen_none_is_started(project: PluginProject) -> None:
    """Nobody would end them: it is refused, with what helps, and leaves nothing."""
    program = Path(sys.executable).with_name("pytest-ephemeral")
    done = subprocess.run(
        [*BLIND, str(program), "up", project.one],
        cwd=project.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "/proc is missing, or shows" in done.stderr
    assert not list((project.folder / ".ephemeral").glob("environments/*.json"))
