"""Clean-up after pytest, its owner process, or both are killed.

The provider is a third party's without a guard, so that every clean-up was done for it. The tests
check its folders, and the ledger's files.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from support import processes
from support.folder_project import PASSES, FolderProject, project
from support.plugin_project import end, eventually

__all__ = ["project"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")


@pytest.mark.parametrize("arguments", [[], ["-n", "2"]], ids=["alone", "xdist"])
@pytest.mark.parametrize("name", ["SIGKILL", "SIGHUP", "SIGQUIT"])
def test_the_owner_cleans_up_after_pytest(
    project: FolderProject, arguments: list[str], name: str
) -> None:
    """After each signal (a closed terminal sends SIGHUP), the owner destroys and saves logs."""
    process, owner = project.wait("--ephemeral-logs", "logs", *arguments)
    ids = project.environments()
    os.kill(process.pid, getattr(signal, name))
    process.wait(30)
    assert eventually(project.is_clean, 30), project.environments()
    assert eventually(lambda: not Path("/proc", str(owner)).exists(), 30)
    for id in ids:
        assert "has printed" in (project.folder / "logs" / id / "it.log").read_text()
        assert (project.folder / "logs" / id / "timeline.json").exists()
    end(process)


@pytest.mark.parametrize("arguments", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_a_new_owner_cleans_up_after_a_killed_one(
    project: FolderProject, arguments: list[str]
) -> None:
    """It destroys the environments while the test still waits; pytest reports it and fails."""
    process, owner = project.wait(*arguments)
    os.kill(owner, signal.SIGKILL)
    assert eventually(project.is_clean, 30), project.environments()
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert f"(pid {owner}) was killed" in output
    assert "all of them were destroyed" in output
    assert "Traceback" not in output


def test_a_command_whose_owner_was_killed_cleans_up(project: FolderProject) -> None:
    """`with` fails, and a new owner destroys its environment."""
    kill = "kill -9 $(cat /proc/$PPID/task/*/children | tr ' ' '\\n' | grep -vx $$ | head -1)"
    done = project.try_command("with", "folder", "--", "sh", "-c", kill)
    assert done.returncode != 0
    assert "can't be reached" in done.stderr
    assert project.is_clean()


def test_tests_after_the_owner_died_fail_at_once(project: FolderProject) -> None:
    """Each has an error without a traceback; tests that need no environment run."""
    project.write(
        test_it="""
from pathlib import Path
def test_first(ephemeral_env):
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            if b"pytest_ephemeral.broker" in Path("/proc", child, "cmdline").read_bytes():
                os.kill(int(child), signal.SIGKILL)
def test_second(ephemeral_env): pass
def test_third(ephemeral_env_function): pass
def test_fourth(): pass
"""
    )
    output = project.run_tests(status=1)
    assert "2 passed" in output
    assert output.count("can't be reached") >= 2
    assert "Traceback" not in output
    assert eventually(project.is_clean, 30), project.environments()


def test_reap_cleans_up_after_pytest_and_owner(project: FolderProject) -> None:
    """Without a guard, the environments stay until `reap` sees that their owner is gone."""
    process, owner = project.wait()
    os.kill(owner, signal.SIGSTOP)  # so that it does not act before it is killed itself
    os.kill(process.pid, signal.SIGKILL)
    os.kill(owner, signal.SIGKILL)
    process.wait(30)
    assert len(project.environments()) == 2
    done = project.try_command("reap")
    assert done.returncode == 0, done.stderr
    assert project.is_clean()
    end(process)


def test_a_terminated_owner_cleans_up(project: FolderProject) -> None:
    """After SIGTERM, the owner destroys its environments before it exits."""
    process, owner = project.wait()
    os.kill(owner, signal.SIGTERM)
    assert eventually(project.is_clean, 30), project.environments()
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert "was killed" in output


def test_an_interrupt_resumes_a_suspended_owner(project: FolderProject) -> None:
    """A suspended owner would neither answer pytest nor destroy anything."""
    process, owner = project.wait()
    os.kill(owner, signal.SIGSTOP)
    os.kill(process.pid, signal.SIGINT)
    try:
        output, _ = process.communicate(timeout=15)
        assert process.returncode == pytest.ExitCode.INTERRUPTED, output
        assert project.is_clean(), project.environments()
    finally:
        end(process)


def test_an_owner_destroys_only_environments_of_its_run(project: FolderProject) -> None:
    """Another run's environments stay, and so does a kept one."""
    kept = project.try_command("up", "folder").stdout.strip()
    living, _ = project.wait(others=1)
    before = set(project.environments())
    (project.folder / "waiting").unlink()
    dying = project.spawn("--ephemeral-env")
    assert eventually(lambda: len(project.environments()) == 5, 20)
    dying.kill()
    dying.wait(30)
    assert eventually(lambda: set(project.environments()) == before, 30)
    assert kept in before
    assert eventually(lambda: len(project.records()) == 3, 30)
    assert living.poll() is None
    living.kill()
    assert eventually(lambda: project.environments() == [kept], 30)
    project.try_command("down", "--all")
    end(dying)
    end(living)


FORKS = """
import ctypes
def test_forks(ephemeral_env):
    if FORK():
        open("waiting", "w").close()
        time.sleep(60)
    time.sleep(30)  # the child lives on, with all that it has a copy of
    os._exit(0)
"""


@pytest.mark.parametrize("fork", ["os.fork", "ctypes.CDLL(None).fork"])
def test_a_forked_child_is_not_mistaken_for_pytest(project: FolderProject, fork: str) -> None:
    """Pytest's end is detected although a child lives, forked by Python or by a C library."""
    project.write(test_it=FORKS.replace("FORK()", f"{fork}()"))
    process = project.spawn("--ephemeral-env", "-W", "ignore")
    assert eventually((project.folder / "waiting").exists, 20), end(process)
    assert len(project.environments()) == 1
    owner = Path("/proc", str(project.owner(process.pid)))
    process.kill()
    process.wait(30)
    try:
        assert eventually(project.is_clean, 30)
        assert eventually(lambda: not owner.exists(), 30)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the forked child has lived until here
    end(process)


def test_modules_in_the_current_folder_are_not_imported(project: FolderProject) -> None:
    """A project's module may have the name of one in the standard library."""
    for name in ("select", "secrets", "queue", "hmac"):
        (project.folder / f"{name}.py").write_text("raise SystemExit(f'{__name__} was imported')\n")
    project.write(test_it=PASSES)
    pytest_ = [processes.PROGRAM.with_name("pytest"), "-p", "no:cacheprovider"]
    done = processes.run(*pytest_, "--ephemeral-env", folder=project.folder)
    assert "1 passed" in done.stdout


def test_a_crash_after_the_last_test_fails_the_run(project: FolderProject) -> None:
    """The environment is checked before its removal, and its log is saved."""
    project.write(
        test_it="""
from pathlib import Path
def test_crashes(ephemeral_env):
    Path(os.environ["FOLDERS"], ephemeral_env.id, "exited").touch()
"""
    )
    output = project.run_tests("--ephemeral-logs", "logs", status=1)
    assert "1 passed" in output
    assert "stopped by itself: it exited with status 7" in output
    [log] = project.folder.glob("logs/*/it.log")
    assert "has printed" in log.read_text()
