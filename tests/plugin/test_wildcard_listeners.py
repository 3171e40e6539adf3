"""Applications that listen on every address: concurrent runs do not mix them up."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path

import pytest

from support.plugin_project import PluginProject

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="an address of its own for each")

PROGRAM = Path(sys.executable).with_name("pytest-ephemeral")

#: Third-party servers that listen on every address by default.
SERVERS = {
    "python": "echo $STATE > index.html; exec {python} -m http.server $PORT",
    "node": (
        """exec node -e 'require(\\"http\\").createServer((asked, answer) => """
        """answer.end(process.env.STATE)).listen(process.env.PORT)'"""
    ),
}

#: Waits for the tests of all other runs, then checks which environment answers.
TEST = """
from pathlib import Path

def test_each_environment_answers_for_itself(ephemeral_env):
    Path(f"up-{os.getpid()}").touch()
    for _ in range(3000):
        if len(list(Path().glob("up-*"))) == 4:
            break
        time.sleep(0.01)
    for _ in range(20):
        assert ephemeral_env.id in get(ephemeral_env.url)
    Path(f"done-{os.getpid()}").touch()
    for _ in range(3000):
        if len(list(Path().glob("done-*"))) == 4:
            return
        time.sleep(0.01)
    raise AssertionError("the others were not up")
"""


def configure(project: PluginProject, server: str, more: str = "") -> int:
    """Configure a server that listens on every address, and return its port."""
    with socket.create_server(("", 0)) as found:
        port: int = found.getsockname()[1]
    command = SERVERS[server].format(python=sys.executable)
    project.configure(
        f'[templates.{project.one}]\nprovider = "local"\nport = {port}\n'
        f'ready = {{ http = "/" }}\n{more}\ncommand = """{command}"""\n'
    )
    project.write(test_it=TEST)
    return port


@pytest.mark.parametrize(
    "server",
    [
        "python",
        pytest.param(
            "node",
            marks=pytest.mark.skipif(shutil.which("node") is None, reason="needs node"),
        ),
    ],
)
def test_concurrent_runs_with_free_port_do_not_interfere(
    project: PluginProject, server: str
) -> None:
    """With ``free-port``, each of four runs reaches its own environment."""
    configure(project, server, "free-port = true")
    runs = [project.spawn("--ephemeral-env") for _ in range(4)]
    outputs = [run.communicate(timeout=90)[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * 4, "\n".join(outputs)
    assert not any("free-port" in output for output in outputs)


def test_without_free_port_a_warning_comes_before_the_tests(project: PluginProject) -> None:
    """A single run passes, and the warning names the setting for concurrent runs."""
    port = configure(project, "python")
    project.write(test_it="def test_it(ephemeral_env):\n    print('the test')\n")
    output = project.run_tests("-s")
    warning = output.index("set `free-port = true` in its template")
    assert warning < output.index("the test")
    assert f":{port}, not on its own address alone" in output


def test_without_free_port_the_second_run_is_refused_by_name(project: PluginProject) -> None:
    """The second run never reaches the first application, and the error names the setting."""
    port = configure(project, "python")
    project.write(test_it="def test_it(ephemeral_env):\n    pass\n")
    inner = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--ephemeral-env"]
    run = project.command("with", project.one, "--", *inner, status=1)
    assert f"port {port} is taken on every address of this machine" in run.stdout
    assert "set `free-port = true`" in run.stdout
