"""A uid without a name and a home, as in a CI server's containers (``docker run -u``)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pytest_ephemeral
from support import processes
from support.lacks import skip_without

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="of Linux"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
]

#: A uid of this test process only, as its folders are in one place on each machine.
UID = 20000 + os.getpid() % 10000

CONFIGURATION = """
[images.site]
provider = "local"
artifact = "index.html"
install = ['cp "$ARTIFACT" "$PREFIX"', 'touch "${HOME:?}/written"']

[templates.staging]
image = "site"
command = 'exec python3 -m http.server --directory "$PREFIX" --bind $HOST $PORT'
port = 8080
ready = { http = "/" }
"""

TEST = """
import requests
def test_it(ephemeral_url): assert "Welcome" in requests.get(ephemeral_url).text
"""

PROGRAM = "import sys; from pytest_ephemeral.cli import main; sys.exit(main())"

Run = Callable[..., str]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A project that the uid owns; its files elsewhere are removed too."""
    kept = [Path(f"/var/tmp/pytest-ephemeral{part}-{UID}") for part in ("", "-state")]
    for one in kept:
        shutil.rmtree(one, ignore_errors=True)
    folder = Path(f"/var/tmp/project-{UID}")
    folder.mkdir()
    for name, text in {
        "ephemeral.toml": CONFIGURATION,
        "index.html": "Welcome",
        "test_site.py": TEST,
    }.items():
        (folder / name).write_text(text)
        os.chown(folder / name, UID, UID)
    os.chown(folder, UID, UID)
    yield folder
    for one in (folder, *kept):
        subprocess.run(["chmod", "-R", "u+w", one], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(one, ignore_errors=True)


@pytest.fixture(params=[None, "/", "/nonexistent"], ids=["unset", "slash", "nowhere"])
def run(request: pytest.FixtureRequest, folder: Path) -> Run:
    """A function that runs Python as that uid, with HOME unset or unusable, and these libraries."""
    python = next(
        (one for one in (sys.executable, "/usr/bin/python3") if _can_run(one)),
        None,
    )
    if python is None:
        skip_without("a Python that every user may run", "it is below another user's home")
    home = {} if request.param is None else {"HOME": request.param}
    paths = [Path(pytest_ephemeral.__file__).parents[1], Path(pytest.__file__).parents[1]]

    def run(*arguments: str, status: int = 0) -> str:
        variables = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            **home,
        }
        argv = [python, "-B", *arguments]
        done = processes.run(*argv, folder=folder, environ=variables, user=UID, status=status)
        said = done.stdout + done.stderr
        for wrong in ("Traceback", "This is a bug", "internal error"):
            assert wrong not in said, said
        return said

    return run


def _can_run(python: str) -> bool:
    """Whether the uid can run this Python, and it has the version of the tests."""
    code = f"import sys; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})"
    try:
        done = subprocess.run(
            [python, "-c", code], user=UID, group=UID, check=False, capture_output=True
        )
    except PermissionError:
        return False
    return done.returncode == 0


def test_a_run_works_without_a_home(run: Run) -> None:
    """An image is baked, and an environment launched, tested and destroyed."""
    said = run("-m", "pytest", "--ephemeral-env", "-p", "no:cacheprovider")
    assert "1 passed" in said
    assert "destroyed" in said


def test_the_command_line_works_without_a_home(run: Run, folder: Path) -> None:
    """The commands keep their state in a private folder in /var/tmp."""
    said = run("-c", PROGRAM, "doctor")
    assert f"/var/tmp/pytest-ephemeral-state-{UID}" in said
    run("-c", PROGRAM, "up", "staging")
    assert "staging" in run("-c", PROGRAM, "list")
    run("-c", PROGRAM, "reap")
    run("-c", PROGRAM, "down", "--all")
    assert "no environments are up" in run("-c", PROGRAM, "list")
    left = Path(f"/var/tmp/pytest-ephemeral-state-{UID}")
    assert not list(left.glob("environments/*"))
    assert left.stat().st_uid == UID
    assert left.stat().st_mode & 0o777 == 0o700


def test_a_folder_of_another_user_is_refused(run: Run) -> None:
    """A state folder in /var/tmp that another user has created is not used."""
    Path(f"/var/tmp/pytest-ephemeral-state-{UID}").mkdir(mode=0o777)
    said = run("-c", PROGRAM, "up", "staging", status=2)
    assert "other users can change" in said
    assert "set PYTEST_EPHEMERAL_STATE" in said
