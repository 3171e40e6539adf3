"""``pytest-ephemeral with``: a command runs while an environment is up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.plugin_project import PluginProject
from support.processes import PROGRAM, run
from support.waiting import eventually

ASKS = """
import os, sys
sys.path.insert(0, os.getcwd())
from client import get
url = os.environ["EPHEMERAL_URL"]
assert sys.argv[1:] == [url, os.environ["EPHEMERAL_URL_HTTP"], os.environ["EPHEMERAL_ENV"], "{x}"]
print(get(url))
sys.exit(3)
"""


SERVER = """
[images.none]
provider = "local"
reference = "{folder}"

[templates.stopped]
image = "none"
command = "exec {python} -m http.server --bind $HOST $PORT > $OUT/said 2>&1"
port = 8080
stop-signal = "SIGINT"
grace = "20s"
env = {{ PYTHONUNBUFFERED = "1", OUT = "{out}" }}
"""


def test_the_stop_signal_and_grace_are_used(tmp_path: Path) -> None:
    """Python's web server prints its last line only if it is stopped by SIGINT."""
    text = SERVER.format(folder=tmp_path / "image", out=tmp_path, python=sys.executable)
    (tmp_path / "ephemeral.toml").write_text(text)
    (tmp_path / "image").mkdir()
    environ = {**os.environ, "PYTEST_EPHEMERAL_STATE": str(tmp_path / "state")}
    run(PROGRAM, "with", "stopped", "--", "true", folder=tmp_path, environ=environ)
    assert "Keyboard interrupt received" in (tmp_path / "said").read_text()


def test_an_unknown_stop_signal_is_refused(tmp_path: Path) -> None:
    """The configuration error is reported before any launch."""
    text = SERVER.format(folder=tmp_path, out=tmp_path, python=sys.executable).replace(
        "SIGINT", "SIGSTOPP"
    )
    (tmp_path / "ephemeral.toml").write_text(text)
    done = run(PROGRAM, "up", "stopped", folder=tmp_path, status=2)
    assert "templates.stopped: stop-signal: there is no signal 'SIGSTOPP'" in done.stderr


def start_with(project: PluginProject, *words: str, **options: Any) -> subprocess.Popen[str]:
    """Start the command as a process in its own session."""
    return subprocess.Popen(
        [PROGRAM, "with", *words],
        cwd=project.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def test_a_command_runs_with_an_environment(project: PluginProject) -> None:
    """Variables and arguments name the environment; output and status are passed through."""
    command = [sys.executable, "-c", ASKS, "{url}", "{url:http}", "{id}", "{x}"]
    process = start_with(project, project.one, "--", *command)
    output, talk = process.communicate(timeout=60)
    assert (process.returncode, output) == (3, "plain\n"), talk
    assert " up http://" in talk
    assert "destroyed" in talk
    assert not project.traces()


@pytest.mark.parametrize(
    ("code", "health", "status"),
    [(0, "fail", 1), (5, "fail", 5), (0, "report", 0)],
    ids=["succeeded", "failed", "reported"],
)
def test_a_crash_fails_the_command(
    project: PluginProject, code: int, health: str, status: int
) -> None:
    """A crash fails a command that succeeded, unless ``health`` is ``report``."""
    project.reconfigure("ready = { tcp", f'health = "{health}"\nready = {{ tcp')
    crash = f"from client import get; get('{{url}}', '/crash'); exit({code})"
    process = start_with(project, project.one, "--", sys.executable, "-c", crash)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == status, talk
    assert ("stopped by itself" in talk and "status 7" in talk) == (health == "fail")
    assert not project.traces()


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["--", "no-such-program"], 127, "command not found"),
        (["--", "./client.py"], 126, "ermission denied"),
        (["--", "true", "{url:admin}"], 3, "no endpoint 'admin'"),
        (["nowhere", "--", "true"], 2, "no template 'nowhere'"),
        (["--json", "--", "true"], 2, "--json"),
    ],
)
def test_a_missing_program_leaves_nothing(
    project: PluginProject, words: list[str], status: int, text: str
) -> None:
    """Exit statuses are those of a shell (126, 127), or of the command line."""
    process = start_with(project, *words)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == status, talk
    assert text in talk
    assert "Traceback" not in talk
    assert not project.traces()


def test_a_failed_launch_does_not_run_the_command(project: PluginProject) -> None:
    """The reason of the failed launch is printed once."""
    process = start_with(project, project.broken, "--", "touch", "ran")
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 1
    assert talk.count("the database is not there") == 1
    assert not (project.folder / "ran").exists()


def test_without_a_command_a_shell_is_started(project: PluginProject) -> None:
    """The shell is the user's, from the variable ``SHELL``."""
    process = start_with(project, stdin=subprocess.PIPE, env={**os.environ, "SHELL": "/bin/sh"})
    output, talk = process.communicate("echo in $EPHEMERAL_ENV; exit 4\n", timeout=60)
    assert process.returncode == 4, talk
    assert output.startswith(f"in {project.one}-")


@pytest.mark.parametrize(
    ("number", "group", "status"),
    [
        (signal.SIGTERM, False, 128 + signal.SIGTERM),
        (signal.SIGINT, True, 128 + signal.SIGINT),
        (signal.SIGKILL, False, -signal.SIGKILL),
    ],
    ids=["terminated", "Ctrl-C", "killed"],
)
def test_no_end_of_the_command_leaves_anything(
    project: PluginProject, number: int, group: bool, status: int
) -> None:
    """SIGTERM and Ctrl-C reach the command; after SIGKILL, the owner process cleans up."""
    process = start_with(project, "--", "sh", "-c", "touch running; exec sleep 60")
    assert eventually((project.folder / "running").exists, 30)
    os.killpg(process.pid, number) if group else os.kill(process.pid, number)
    assert process.wait(30) == status
    assert eventually(lambda: not project.traces(), 30), project.traces()
    if number == signal.SIGKILL:
        os.killpg(process.pid, signal.SIGKILL)  # the command still runs
    process.communicate(timeout=30)


def test_a_killed_owner_is_reported(project: PluginProject) -> None:
    """The exit status is not that of the command, which succeeded."""
    kill = """
import os, signal
from pathlib import Path
for children in Path("/proc", str(os.getppid()), "task").glob("*/children"):
    for child in children.read_text().split():
        if b"pytest_ephemeral.broker" in Path("/proc", child, "cmdline").read_bytes():
            os.kill(int(child), signal.SIGKILL)
"""
    process = start_with(project, "--", sys.executable, "-c", kill)
    _, talk = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "was killed" in talk or "can't be reached" in talk
    assert "Traceback" not in talk
    assert eventually(lambda: not project.list_remains(), 30), project.list_remains()
    project.reap()
