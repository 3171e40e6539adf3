"""The project of the measurements: two applications, and functions that start them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SHOP = HERE.parent / "examples" / "shop"

CONFIGURATION = """
[images.tiny]
provider = "local"
artifact = "tiny.py"
install = ['cp "$ARTIFACT" "$PREFIX/tiny.py"']

[templates.tiny]
image = "tiny"
command = COMMAND
port = 8080

[images.shop]
provider = "local"
artifact = "shop-*.whl"
install = "install.sh"

[templates.shop]
image = "shop"
command = "$PREFIX/bin/shop serve --host $HOST --port $PORT"
port = 8080
"""

IDLE_TESTS = """
def test_one(): pass
def test_two(): pass
"""

TESTS = """
import urllib.request

import pytest

opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

@pytest.mark.parametrize("number", range(COUNT))
def test_answers(FIXTURE, number):
    assert opener.open(FIXTURE, timeout=5).status == 200
"""

BARE_FIXTURE = """
import os

import pytest

@pytest.fixture(scope="session")
def url():
    return os.environ["BENCH_URL"]
"""


@dataclass(frozen=True, slots=True)
class Application:
    """One application, as the template starts it.

    Attributes:
        name: The template's and the image's name.
        argv: The command that starts it by hand, from the same baked image.
        port: The port on which it then listens.
    """

    name: str
    argv: Sequence[str]
    port: int

    @property
    def url(self) -> str:
        """The URL of the application when it was started by hand."""
        return f"http://127.0.0.1:{self.port}/"


@dataclass(frozen=True, slots=True)
class Workshop:
    """A folder with the project, and environment variables for state folders inside it."""

    folder: Path
    variables: Mapping[str, str]

    @classmethod
    def create(cls, folder: Path) -> Workshop:
        """Write the configuration and the tests, and build the artifacts."""
        prefixes = folder / "prefixes"
        prefixes.mkdir(mode=0o700)
        command = f'{shlex.quote(sys.executable)} "$PREFIX/tiny.py" $HOST $PORT'
        configuration = CONFIGURATION.replace("COMMAND", json.dumps(command))
        (folder / "ephemeral.toml").write_text(configuration)
        (folder / "pytest.ini").write_text("[pytest]\n")
        shutil.copy(HERE / "tiny.py", folder)
        shutil.copy(SHOP / "deploy" / "install.sh", folder)
        write_tests(folder)
        wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
        subprocess.run([*wheel, folder, SHOP], check=True)
        variables = {
            # Installed packages have bytecode; without this variable, the checkout gets it, too.
            **{name: os.environ[name] for name in os.environ if name != "PYTHONDONTWRITEBYTECODE"},
            # Without plugins that neither side needs.
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_EPHEMERAL_STATE": str(folder / "state"),
            "PYTEST_EPHEMERAL_PREFIX_ROOT": str(prefixes),
        }
        return cls(folder, variables)

    def pytest(self, *arguments: str, **variables: str) -> float:
        """Run pytest in a new process, and return the seconds that it took."""
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
            cwd=self.folder,
            env={**self.variables, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - started
        if done.returncode != 0:
            raise SystemExit(f"pytest {shlex.join(arguments)} failed:\n{done.stdout}{done.stderr}")
        return seconds


def write_tests(folder: Path) -> None:
    """Write the same tests twice: against a URL in a variable, and against an environment."""
    for kind, fixture in (("bare", "url"), ("ephemeral", "ephemeral_url")):
        for name, count in (("two", 2), ("many", 16)):
            source = TESTS.replace("COUNT", str(count)).replace("FIXTURE", fixture)
            (folder / kind / name).mkdir(parents=True)
            (folder / kind / name / f"test_{name}.py").write_text(source)
    (folder / "bare" / "conftest.py").write_text(BARE_FIXTURE)
    (folder / "idle").mkdir()
    (folder / "idle" / "test_idle.py").write_text(IDLE_TESTS)


@contextmanager
def started(application: Application) -> Iterator[float]:
    """Start an application by hand; yields the seconds until it accepted a connection.

    Its working folder is new and empty, like that of an environment.
    """
    with tempfile.TemporaryDirectory(prefix="ephemeral-bench-") as folder:
        begun = time.perf_counter()
        process = subprocess.Popen(
            application.argv, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            while not _accepts(application.port):
                if process.poll() is not None:
                    raise SystemExit(f"{application.name} exited with {process.returncode}")
                time.sleep(0.002)
            yield time.perf_counter() - begun
        finally:
            process.kill()
            process.wait()


def _accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A free port of 127.0.0.1."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
