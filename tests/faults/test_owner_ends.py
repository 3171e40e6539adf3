"""Who dies, and who finishes: pytest, the owner process, both, and a removal that is refused.

The provider is a third party's, which guards nothing: whatever is cleaned up was cleaned up for it.
What counts are its folders, and the ledger's files.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import entry_points, processes
from support.plugin_project import PluginProject, end, eventually, make_project

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")

HERE = Path(__file__).parent

CONFIGURATION = """
[templates.folder]
provider = "folders"
port = 8080
ready = { log = "printed" }
"""

WAITS = """
from pathlib import Path
def test_waits(ephemeral_env, ephemeral_env_module):
    Path("waiting").write_text(str(os.getpid()))
    time.sleep(60)
"""

PASSES = "def test_passes(ephemeral_env): pass"


class FolderProject(PluginProject):
    """A project whose environments are folders."""

    @property
    def folders(self) -> Path:
        """Where its environments are."""
        return Path(os.environ["FOLDERS"])

    def environments(self) -> list[str]:
        """The environments that are there."""
        return [folder.name for folder in self.folders.iterdir() if folder.is_dir()]

    def records(self) -> list[Path]:
        """The ledger's records."""
        return list(self.folder.glob(".ephemeral/environments/*.json"))

    def is_clean(self) -> bool:
        """Whether nothing is left, neither things nor records."""
        return not self.environments() and not self.records()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        return processes.run(processes.PROGRAM, *arguments, folder=self.folder, status=None)

    def wait(self, *arguments: str, others: int = 0) -> tuple[subprocess.Popen[str], int]:
        """Pytest with a test that is waiting, and the process id of its owner."""
        process, _ = self.spawn_waiting(*arguments)
        assert eventually(lambda: len(self.environments()) == 2 + others, 30), end(process)
        return process, self.owner(process.pid)

    @staticmethod
    def owner(pid: int) -> int:
        """The owner process of a pytest."""
        for children in Path("/proc", str(pid), "task").glob("*/children"):
            for child in children.read_text().split():
                words = Path("/proc", child, "cmdline").read_bytes().split(b"\0")
                if b"pytest_ephemeral.broker" in words:
                    return int(child)
        raise AssertionError("it has no owner process")


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FolderProject]:
    """A project with the third party's provider, installed for every child process."""
    site = tmp_path / "site"
    entry_points.register(site, "providers", "folders = third_party:FolderProvider")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(HERE)]))
    monkeypatch.setenv("FOLDERS", str(tmp_path / "folders"))
    # SIGQUIT would have all the memory of a pytest written to disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    (tmp_path / "folders").mkdir()
    (tmp_path / "project").mkdir()
    made = make_project(tmp_path / "project", monkeypatch, tmp_path_factory)
    project = FolderProject.__new__(FolderProject)
    project.__dict__.update(vars(made))
    project.configure(CONFIGURATION)
    project.write(test_it=WAITS)
    yield project
    (project.folders / "slow").unlink(missing_ok=True)


@pytest.mark.parametrize("arguments", [[], ["-n", "2"]], ids=["alone", "xdist"])
@pytest.mark.parametrize("name", ["SIGKILL", "SIGHUP", "SIGQUIT"])
def test_the_owner_cleans_up_after_pytest(
    project: FolderProject, arguments: list[str], name: str
) -> None:
    """In whatever way (a closed terminal is SIGHUP): the owner ends everything, and saves logs."""
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
    """Pytest says so and fails; a fresh owner ends what there was, while the test still waits."""
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
    """`with` fails, and has another one end what there was."""
    kill = "kill -9 $(cat /proc/$PPID/task/*/children | tr ' ' '\\n' | grep -vx $$ | head -1)"
    done = project.command("with", "folder", "--", "sh", "-c", kill)
    assert done.returncode != 0
    assert "can't be reached" in done.stderr
    assert project.is_clean()


def test_tests_after_the_owner_died_fail_at_once(project: FolderProject) -> None:
    """Each in one line, at once; those that need no environment run."""
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
    """What nobody guards stays until its expiry, and `reap` knows whose it was."""
    process, owner = project.wait()
    os.kill(owner, signal.SIGSTOP)  # so that it does not act before it is killed itself
    os.kill(process.pid, signal.SIGKILL)
    os.kill(owner, signal.SIGKILL)
    process.wait(30)
    assert len(project.environments()) == 2
    done = project.command("reap")
    assert done.returncode == 0, done.stderr
    assert project.is_clean()
    end(process)


def test_a_terminated_owner_cleans_up(project: FolderProject) -> None:
    """SIGTERM, by whoever: it ends everything itself before it goes."""
    process, owner = project.wait()
    os.kill(owner, signal.SIGTERM)
    assert eventually(project.is_clean, 30), project.environments()
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert "was killed" in output


def test_an_interrupt_resumes_a_suspended_owner(project: FolderProject) -> None:
    """Suspended, it would not answer pytest, and would destroy nothing."""
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
    """Another run's environments stay, and what was kept."""
    kept = project.command("up", "folder").stdout.strip()
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
    project.command("down", "--all")
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
    """Neither a child that Python knows of, nor one that a library has forked."""
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
        os.killpg(process.pid, signal.SIGKILL)  # the child that was forked is there to the end
    end(process)


def test_modules_in_the_current_folder_are_not_imported(project: FolderProject) -> None:
    """A project may have a module that is called like one of the standard library's."""
    for name in ("select", "secrets", "queue", "hmac"):
        (project.folder / f"{name}.py").write_text("raise SystemExit(f'{__name__} was imported')\n")
    project.write(test_it=PASSES)
    pytest_ = [processes.PROGRAM.with_name("pytest"), "-p", "no:cacheprovider"]
    done = processes.run(*pytest_, "--ephemeral-env", folder=project.folder)
    assert "1 passed" in done.stdout


# -- a removal that is refused -------------------------------------------------------------------


def test_a_refused_removal_fails_the_run_and_is_reported(project: FolderProject) -> None:
    """By this run, in its report, by `list`, by the next run; `reap` then removes it."""
    project.write(test_it=PASSES)
    (project.folders / "refuse").touch()
    output = project.run_tests("--ephemeral-report", "report.json", status=1)
    [id] = project.environments()
    assert "1 passed" in output
    assert "access denied" in output
    assert "pytest-ephemeral reap" in output
    [told] = json.loads((project.folder / "report.json").read_text())["environments"]
    assert told["state"] == "leaked"
    reaped = project.command("reap")
    assert f"{id} could not be removed: {id}: access denied" in reaped.stderr
    assert f"pytest-ephemeral down {id}" in reaped.stderr
    [record] = project.records()
    owner = json.loads(record.read_text())["environment"]["owner"]["pid"]
    os.kill(owner, signal.SIGKILL)  # it would go on trying
    listed = project.command("list")
    assert "not removed" in listed.stdout
    assert f"{id} could not be removed: {id}: access denied" in listed.stderr
    assert f"{id} of an earlier run could not be removed" in project.run_tests(status=1)
    assert project.command("reap").returncode == 6
    (project.folders / "refuse").unlink()
    assert project.command("reap").returncode == 0
    assert eventually(project.is_clean, 20)  # what the second run has left, its owner removes


def test_a_refused_removal_is_tried_again(project: FolderProject) -> None:
    """And is nobody's trouble."""
    project.write(test_it=PASSES)
    (project.folders / "refuse").write_text("2")
    project.run_tests()
    assert project.is_clean()


def test_the_owner_retries_a_refused_removal_after_pytest(project: FolderProject) -> None:
    """By the owner process, which says nothing more, and goes when it is done."""
    project.write(test_it=PASSES)
    (project.folders / "refuse").touch()
    project.run_tests(status=1)
    (project.folders / "refuse").unlink()
    assert eventually(project.is_clean, 30)


@pytest.mark.parametrize("ci", ["", "true"])
def test_pytest_waits_for_accepted_removals_only_on_ci(
    project: FolderProject, monkeypatch: pytest.MonkeyPatch, ci: str
) -> None:
    """A CI kills what its job leaves behind, so there the removal is waited for to its end."""
    monkeypatch.setenv("CI", ci)
    project.write(test_it=PASSES)
    (project.folders / "slow").touch()
    process = project.spawn("--ephemeral-env")
    if ci:
        assert eventually((project.folders / "slow").read_text, 40), end(process)
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=1)
        (project.folders / "slow").unlink()
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert ("cleanup continues in the background" in output) == (not ci)
    assert bool(re.search(r"ephemeral: folder-\w+: destroying", output)) == bool(ci)
    (project.folders / "slow").unlink(missing_ok=True)
    assert eventually(project.is_clean, 30)


def test_pytest_waits_for_launches_on_ci(
    project: FolderProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can't be told to stop, so the owner ends it with itself, and pytest waits for that."""
    monkeypatch.setenv("CI", "true")
    (project.folder / "pytest.ini").write_text("[pytest]\nephemeral_early = folder")
    project.write(test_it="def test_passes(): pass")
    (project.folders / "coming").touch()
    project.run_tests()
    assert project.is_clean()


def test_a_crash_after_the_last_test_fails_the_run(project: FolderProject) -> None:
    """Looked for before it is removed, whatever provider it is: the run fails, its log is saved."""
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
