"""However pytest ends, nothing of its environments is left within two seconds.

The tests check processes, sockets and folders, and the ledger's files.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.plugin_project import PluginProject, end, make_project
from support.waiting import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")

#: Seconds after the end of pytest within which everything is removed.
SOON = 2.0

WAITS = """
from pathlib import Path
def test_waits(ephemeral_env, ephemeral_env_module, ephemeral_env_function):
    for environment in (ephemeral_env, ephemeral_env_module, ephemeral_env_function):
        assert get(environment.url) == "plain"
    Path("waiting").write_text(str(os.getpid()))
    time.sleep(60)
"""

STOPS_SLOWLY = """
def pytest_ephemeral_environment_stopped():
    open("stopping", "w").close()
    time.sleep(60)
"""


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PluginProject]:
    """A project whose only test waits; its processes are killed afterwards."""
    project = make_project(tmp_path, monkeypatch, tmp_path_factory)
    project.write(test_it=WAITS)
    yield project
    for pid in project.processes():
        os.kill(pid, signal.SIGKILL)


IGNORES = """
from pathlib import Path
def test_ignores(ephemeral_env):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Path("waiting").write_text(str(os.getpid()))
    time.sleep(7)
"""


@pytest.mark.parametrize("arguments", [[], ["-n", "2"]], ids=["alone", "xdist"])
@pytest.mark.parametrize(
    ("send", "name"),
    [(os.kill, "SIGINT"), (os.killpg, "SIGINT"), (os.kill, "SIGTERM")],
    ids=["SIGINT", "SIGINT to the group", "SIGTERM"],
)
def test_a_signal_ends_the_environments_at_once(project, arguments, send, name):
    """A terminal's Ctrl-C is sent to the whole process group, and a CI server's SIGTERM to pytest.

    Workers are interrupted too, and don't wait for 5 s as they otherwise would.
    """
    process, worker = project.spawn_waiting(*arguments)
    assert len(project.processes()) >= 3
    send(process.pid, getattr(signal, name))
    assert eventually(lambda: not project.processes(), SOON), project.processes()
    if worker != process.pid:
        assert eventually(lambda: not Path("/proc", str(worker)).exists(), 4.5)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output
    assert project.clean_within(0.2), project.traces()
    assert output.count("destroyed") >= 3


def test_a_worker_ignoring_the_signal_delays_no_cleanup(project):
    """Its test continues without its environment."""
    project.write(test_it=IGNORES)
    process = project.spawn("--ephemeral-env", "-n", "2")
    assert eventually((project.folder / "waiting").exists, 40), end(process)
    os.kill(process.pid, signal.SIGINT)
    assert eventually(lambda: not project.processes(), SOON), project.processes()
    assert process.poll() is None
    output, _ = process.communicate(timeout=30)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output


@pytest.mark.parametrize("arguments", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_guards_clean_up_after_a_killed_pytest(project, arguments):
    """After SIGKILL, only the guards can clean up."""
    process, _ = project.spawn_waiting(*arguments)
    process.kill()
    process.wait(10)
    gone = project.clean_within(SOON)
    left = project.traces()
    end(process)
    assert gone, left


def test_a_kill_during_the_launch_leaves_nothing(project):
    """The record is created before anything else, so that `reap` can remove it."""
    project.reconfigure("tcp = true", 'tcp = true, log = "never printed"')
    process = project.spawn("--ephemeral-env")
    assert eventually(lambda: len(project.processes()) >= 1, 40), end(process)
    process.kill()
    process.wait(10)
    gone = eventually(lambda: not project.list_remains(), SOON)
    left = project.list_remains()
    end(process)
    assert gone, left
    project.reap()  # removes a record without an environment
    assert not project.traces()


def test_ctrl_c_cancels_a_launch(project):
    """The interrupt does not wait until the environment is ready."""
    project.reconfigure("tcp = true", 'tcp = true, log = "never printed"')
    process = project.spawn("--ephemeral-env")
    assert eventually(lambda: len(project.processes()) >= 1, 40), end(process)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=10)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output
    assert project.clean_within(SOON), project.traces()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_pytest_at_once(project, number):
    """It does not wait for a slow destroy, which the guards finish."""
    project.write(conftest=STOPS_SLOWLY)
    process, _ = project.spawn_waiting()
    process.send_signal(number)
    assert eventually((project.folder / "stopping").exists, 30), end(process)
    process.send_signal(number)
    process.wait(30)
    gone = eventually(lambda: not project.list_remains(), SOON)
    left, output = project.list_remains(), end(process)
    assert gone, left
    project.reap()
    assert not project.traces()
    assert "Traceback" not in output
    if number == signal.SIGTERM:  # the second one is not handled
        assert process.returncode == -number
    else:
        assert "interrupted again" in output


def test_a_killed_worker_leaves_nothing(project):
    """Its test fails, its environments are destroyed, and the run ends without leftovers."""
    process, worker = project.spawn_waiting("-n", "2", "--max-worker-restart", "0")
    os.kill(worker, signal.SIGKILL)
    output, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "crashed" in output
    assert project.clean_within(0.2), project.traces()


def test_an_interrupt_before_the_first_test_leaves_nothing(project):
    """An interrupt while the session starts skips pytest_sessionfinish, not the clean-up."""
    project.write(
        conftest="""
@pytest.hookimpl(trylast=True)
def pytest_sessionstart(): raise KeyboardInterrupt
"""
    )
    project.run_tests(status=pytest.ExitCode.INTERRUPTED)
    assert project.clean_within(0.2), project.traces()


def test_a_forked_child_ends_no_environment(project):
    """The child has a copy of everything, but owns no environment."""
    project.write(
        test_it="""
def test_forks(ephemeral_env):
    child = os.fork()
    if not child:
        raise SystemExit  # runs through all of pytest's clean-up
    os.waitpid(child, 0)
    assert get(ephemeral_env.url) == "plain"
"""
    )
    project.run_tests("-W", "ignore", "-p", "no:terminalreporter")
    assert project.clean_within(0.2), project.traces()
