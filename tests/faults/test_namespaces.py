"""An owner in another namespace of the same machine is unknown, not gone.

That is the case in a CI container with this machine's ``/etc/machine-id``, host name and store.
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

#: A new PID namespace, for root and, where the kernel allows it, for every user.
UNSHARE = ["unshare", "--fork", "--pid", "--mount-proc"]
#: A time namespace whose clocks since boot are ten days ahead: time_namespaces(7).
UNSHARE_TIME = ["unshare", "--fork", "--time", "--boottime", "864000", "--monotonic", "864000"]
if sys.platform == "linux" and os.geteuid():
    for options in (UNSHARE, UNSHARE_TIME):
        options += ["--user", "--map-root-user"]


def why_no_namespace() -> str:
    """The reason why namespaces can't be created here; empty if they can."""
    if sys.platform != "linux":
        return "namespaces: only on Linux"
    command = [*UNSHARE, *UNSHARE_TIME, "true"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


pytestmark = pytest.mark.skipif(
    bool(why_no_namespace()), reason="this kernel lets this user make no namespaces"
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
    """A project whose only test waits for the file ``looked``."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    made = make_project(tmp_path, monkeypatch, tmp_path_factory)
    made.write(test_it=WAITS)
    yield made
    assert made.clean_within(30), made.traces()


def test_reap_in_another_namespace_leaves_a_live_run(project: PluginProject) -> None:
    """There, the owner's process ID is another process, or has another start time."""
    run = project.spawn("--ephemeral-env")
    try:
        assert eventually((project.folder / "waiting").exists, 40)
        before = set(project.processes())
        for namespace in (UNSHARE, UNSHARE_TIME):
            reap = [*namespace, processes.PROGRAM, "reap", "--json"]
            there = processes.run(*reap, folder=project.folder)
            assert json.loads(there.stdout)["reaped"] == []
        assert before <= set(project.processes())
        (project.folder / "looked").touch()
        output = run.communicate(timeout=60)[0]
        assert run.returncode == 0, output
    finally:
        end(run)


#: Simulates a chroot or a sandbox without ``/proc``.
BLIND = [*UNSHARE, "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]


def test_no_owner_is_gone_without_proc(project: PluginProject) -> None:
    """Otherwise, the next ``reap`` would remove the environment of a live owner."""
    look = """
from pytest_ephemeral import machine
own = machine.this_owner("run")
print(machine.is_alive(own), machine.is_gone(machine.process_of(own)))
"""
    found = subprocess.run(
        [*BLIND, sys.executable, "-c", look], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["None", "False"]


def test_no_environment_is_launched_without_proc(project: PluginProject) -> None:
    """No process could detect the owner's end, so the launch is refused and leaves nothing."""
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
