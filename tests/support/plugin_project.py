"""A project with a small application, on which tests run pytest, and a search for its traces."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from pytest_ephemeral import ci
from support import processes
from support.waiting import eventually

#: Plugins that only a few tests need; each inner pytest would import them again.
_OTHER_PLUGINS = (
    *("allure_pytest", "anyio", "base_url", "fakefs", "html", "html_fixtures"),
    *("hypothesispytest", "metadata", "playwright", "randomly", "rerunfailures", "timeout"),
)


def without_plugins(*wanted: str) -> str:
    """Options that disable all other plugins, except the given ones (pytest's names)."""
    return " ".join(f"-p no:{name}" for name in _OTHER_PLUGINS if name not in wanted)


#: The application. It imports little, so it starts in a few milliseconds.
APPLICATION = """\
import os, socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("serving", os.environ.get("FLAVOUR", "plain"), flush=True)
while True:
    connection, _ = server.accept()
    request = connection.recv(65536).decode().split()
    if not request:
        connection.close()
        continue
    print("asked for", request[1], flush=True)
    if request[1] == "/crash":
        os._exit(7)
    body = os.environ.get("FLAVOUR", "plain").encode()
    connection.sendall(b"HTTP/1.0 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
    connection.close()
"""

#: The client module of the inner tests, which imports little.
CLIENT = """\
import socket
from urllib.parse import urlsplit

def get(url, path="/"):
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\\r\\n\\r\\n".encode())
        answer = b""
        while data := connection.recv(65536):
            answer += data
    return answer.partition(b"\\r\\n\\r\\n")[2].decode()
"""

CONFIGURATION = """\
default-template = "{one}"

[images.app]
provider = "local"
reference = "image"

[templates.{one}]
image = "app"
command = "exec {python} -S -E $PREFIX/app.py $HOST $PORT"
port = 8080
ready = {{ tcp = true, timeout = "20s" }}

[templates.{two}]
image = "app"
command = "exec {python} -S -E $PREFIX/app.py $HOST $PORT"
port = 8080
env = {{ FLAVOUR = "two" }}

[templates.{broken}]
image = "app"
command = "echo the database is not there; exit 3"
port = 8080
"""


class PluginProject:
    """A folder with an ephemeral.toml, an application and tests.

    Attributes:
        one: The name of the default template, which no other test uses.
        two: The name of another template, whose application answers "two".
        broken: The name of a template whose application does not start.
    """

    def __init__(self, folder: Path, state: Path) -> None:
        unique = secrets.token_hex(3)
        self.folder = folder
        self.state = state
        self.one, self.two, self.broken = (f"{name}{unique}" for name in ("a", "b", "c"))
        image = folder / "image"
        image.mkdir()
        (image / "app.py").write_text(APPLICATION)
        (folder / "client.py").write_text(CLIENT)
        self.configure(
            CONFIGURATION.format(
                one=self.one, two=self.two, broken=self.broken, python=sys.executable
            )
        )

    def configure(self, text: str) -> None:
        """Write the configuration."""
        (self.folder / "ephemeral.toml").write_text(text)

    def reconfigure(self, old: str, new: str) -> None:
        """Replace a part of the configuration."""
        text = (self.folder / "ephemeral.toml").read_text()
        assert old in text
        self.configure(text.replace(old, new))

    def write(self, **modules: str) -> None:
        """Write test modules, with the constants ONE, TWO and BROKEN for the templates' names."""
        # Python would reuse compiled code of a module of the same length from the same second.
        shutil.rmtree(self.folder / "__pycache__", ignore_errors=True)
        for name, text in modules.items():
            head = "import os, signal, time\nimport pytest\nfrom client import get\n"
            names = f"ONE, TWO, BROKEN = {self.one!r}, {self.two!r}, {self.broken!r}\n"
            (self.folder / f"{name}.py").write_text(head + names + text)

    def use_plugins(self, *names: str) -> None:
        """Enable some of the other plugins for the inner pytest runs of this test."""
        os.environ["PYTEST_ADDOPTS"] = without_plugins(*names)  # ``make_project`` restores it

    def spawn(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start pytest as a process in a session of its own."""
        command = [sys.executable, "-m", "pytest", "-p", "no:randomly", "-p", "no:cacheprovider"]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options}
        return subprocess.Popen(
            [*command, *arguments], cwd=self.folder, text=True, start_new_session=True, **options
        )

    def run_tests(self, *arguments: str, status: int = 0, **options: Any) -> str:
        """Run pytest as users do, and return its output."""
        process = self.spawn("--ephemeral-env", *arguments, **options)
        output: str = process.communicate(timeout=120)[0]
        assert process.returncode == status, output
        return output

    def spawn_waiting(self, *arguments: str) -> tuple[subprocess.Popen[str], int]:
        """Start pytest, and wait until a test writes its process id to the file ``waiting``.

        Returns:
            pytest's process, and the id of the process that runs the test.
        """
        process = self.spawn("--ephemeral-env", *arguments)
        file = self.folder / "waiting"

        def written() -> bool:
            return file.exists() and bool(file.read_text())

        assert eventually(lambda: written() or process.poll() is not None, 40)
        assert written(), end(process)
        return process, int(file.read_text())

    # -- traces --------------------------------------------------------------------------------

    def processes(self) -> list[int]:
        """The ids of the processes of this project's environments."""
        names = (self.one, self.two, self.broken)
        return processes.with_variable(*(f"PYTEST_EPHEMERAL_ENVIRONMENT={name}-" for name in names))

    def list_remains(self) -> list[str]:
        """All processes, sockets and folders of this project's environments."""
        found = [f"process {pid}" for pid in self.processes()]
        sockets = Path("/proc/net/unix").read_text().splitlines()
        names = tuple(f"/{name}-" for name in (self.one, self.two, self.broken))
        found += [line for line in sockets if any(name in line for name in names)]
        found += [str(path) for path in self.state.glob("environments/*")]
        return found

    def traces(self) -> list[str]:
        """All remains of environments, with the ledger's records."""
        records = self.folder.glob(".ephemeral/environments/*.json")
        return [*self.list_remains(), *map(str, records)]

    def clean_within(self, seconds: float) -> bool:
        """Whether all traces are gone within some seconds."""
        return eventually(lambda: not self.traces(), seconds)

    def reap(self) -> None:
        """Run ``reap``, which closes records of environments that ended while being destroyed."""
        self.command("reap")

    def destroy_all(self) -> None:
        """Destroy all environments of the test, also kept ones."""
        self.command("down", "--all")
        self.command("reap")

    def end_production(self) -> None:
        """Destroy all environments, also those in production; check that no traces are left."""
        if ids := self.list_ids():
            self.command("down", "--production", *ids)
        assert self.clean_within(5), self.traces()

    def list_ids(self) -> list[str]:
        """The ids of the environments in the ledger."""
        return [file.stem for file in self.folder.glob(".ephemeral/environments/*.json")]

    def command(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command of the CLI in its own process; check its exit status."""
        return processes.run(processes.PROGRAM, *arguments, folder=self.folder, status=status)


def answers(url: str) -> bool:
    """Whether something accepts connections at a URL."""
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname, parts.port or 80), timeout=2).close()
    except OSError:
        return False
    return True


def end(process: subprocess.Popen[str]) -> str:
    """Kill a process if it still runs, and return its output."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate(timeout=30)[0] or ""


def make_project(
    folder: Path, monkeypatch: pytest.MonkeyPatch, roots: pytest.TempPathFactory
) -> PluginProject:
    """Create a project in a folder, with its own machine state; baked images are shared."""
    state = folder / "machine"
    prefixes = roots.getbasetemp() / "prefixes"
    prefixes.mkdir(mode=0o755, exist_ok=True)
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(state))
    monkeypatch.setenv("PYTEST_EPHEMERAL_PREFIX_ROOT", str(prefixes))
    monkeypatch.setenv("PYTEST_ADDOPTS", without_plugins())
    for variable in ("CI", "BUILD_NUMBER", *(vendor.marker for vendor in ci.VENDORS.values())):
        monkeypatch.delenv(variable, raising=False)  # or it would publish to this run's own CI
    return PluginProject(folder, state)
