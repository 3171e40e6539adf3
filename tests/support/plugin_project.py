"""A project with a tiny application, for tests that run pytest on it, and a look for its traces."""

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

#: Plugins that only a few tests need; every pytest inside pytest would import them anew.
_OTHER_PLUGINS = (
    *("allure_pytest", "anyio", "base_url", "fakefs", "html", "html_fixtures"),
    *("hypothesispytest", "metadata", "playwright", "randomly", "rerunfailures", "timeout"),
)


def without_plugins(*wanted: str) -> str:
    """Options that keep all other plugins out, but those that are named as pytest knows them."""
    return " ".join(f"-p no:{name}" for name in _OTHER_PLUGINS if name not in wanted)


#: Starts in a few milliseconds: it imports next to nothing.
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

#: What the tests of the tests use; a client that imports next to nothing.
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
        one: A template's name that no other test uses; the default one.
        two: Another, whose application says "two".
        broken: One whose application does not start.
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
        """Change a piece of the configuration."""
        text = (self.folder / "ephemeral.toml").read_text()
        assert old in text
        self.configure(text.replace(old, new))

    def write(self, **modules: str) -> None:
        """Write test modules. ONE, TWO and BROKEN stand for the templates' names."""
        # What was compiled passes for a module of the same length, written in the same second.
        shutil.rmtree(self.folder / "__pycache__", ignore_errors=True)
        for name, text in modules.items():
            head = "import os, signal, time\nimport pytest\nfrom client import get\n"
            names = f"ONE, TWO, BROKEN = {self.one!r}, {self.two!r}, {self.broken!r}\n"
            (self.folder / f"{name}.py").write_text(head + names + text)

    def use_plugins(self, *names: str) -> None:
        """Let this test's runs of pytest have these of the other plugins that are installed."""
        os.environ["PYTEST_ADDOPTS"] = without_plugins(*names)  # ``make_project`` takes it back

    def spawn(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start pytest as a process of its own, in a session of its own."""
        command = [sys.executable, "-m", "pytest", "-p", "no:randomly", "-p", "no:cacheprovider"]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options}
        return subprocess.Popen(
            [*command, *arguments], cwd=self.folder, text=True, start_new_session=True, **options
        )

    def run_tests(self, *arguments: str, status: int = 0, **options: Any) -> str:
        """Run pytest as users do, to its end: what it printed."""
        process = self.spawn("--ephemeral-env", *arguments, **options)
        output: str = process.communicate(timeout=120)[0]
        assert process.returncode == status, output
        return output

    # -- traces --------------------------------------------------------------------------------

    def processes(self) -> list[int]:
        """The processes that belong to an environment of this project."""
        names = (self.one, self.two, self.broken)
        return processes.with_variable(*(f"PYTEST_EPHEMERAL_ENVIRONMENT={name}-" for name in names))

    def remains(self) -> list[str]:
        """All that is left of this project's environments, as the system sees it."""
        found = [f"process {pid}" for pid in self.processes()]
        sockets = Path("/proc/net/unix").read_text().splitlines()
        names = tuple(f"/{name}-" for name in (self.one, self.two, self.broken))
        found += [line for line in sockets if any(name in line for name in names)]
        found += [str(path) for path in self.state.glob("environments/*")]
        return found

    def traces(self) -> list[str]:
        """All that is left, and the ledger's records of what is left."""
        records = self.folder.glob(".ephemeral/environments/*.json")
        return [*self.remains(), *map(str, records)]

    def clean_within(self, seconds: float) -> bool:
        """Whether every trace is gone within that time."""
        return eventually(lambda: not self.traces(), seconds)

    def reap(self) -> None:
        """Close the records of environments that ended while they were being destroyed."""
        self.command("reap")

    def destroy_all(self) -> None:
        """Destroy what a test has left, kept ones too."""
        self.command("down", "--all")
        self.command("reap")

    def list_ids(self) -> list[str]:
        """The environments that the ledger has."""
        return [file.stem for file in self.folder.glob(".ephemeral/environments/*.json")]

    def command(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command as users do: in a process that is gone afterwards."""
        return processes.run(processes.PROGRAM, *arguments, folder=self.folder, status=status)


def answers(url: str) -> bool:
    """Whether anything accepts connections there."""
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname, parts.port or 80), timeout=2).close()
    except OSError:
        return False
    return True


def end(process: subprocess.Popen[str]) -> str:
    """Make sure that a process is gone, and give what it had printed."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate(timeout=30)[0] or ""


def make_project(
    folder: Path, monkeypatch: pytest.MonkeyPatch, roots: pytest.TempPathFactory
) -> PluginProject:
    """A project in that folder, whose machine state is its own; baked images are shared."""
    state = folder / "machine"
    prefixes = roots.getbasetemp() / "prefixes"
    prefixes.mkdir(mode=0o755, exist_ok=True)
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(state))
    monkeypatch.setenv("PYTEST_EPHEMERAL_PREFIX_ROOT", str(prefixes))
    monkeypatch.setenv("PYTEST_ADDOPTS", without_plugins())
    for variable in ("CI", "BUILD_NUMBER", *(vendor.marker for vendor in ci.VENDORS.values())):
        monkeypatch.delenv(variable, raising=False)  # what publishes in this run's own CI
    return PluginProject(folder, state)
