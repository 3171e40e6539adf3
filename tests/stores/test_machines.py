"""Two machines that share an S3 store: one bakes the image, the other tests it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_ephemeral.providers.local import tree
from pytest_ephemeral.store import Store, open_store
from stores.http_server import Files
from support.plugin_project import APPLICATION, CLIENT, without_plugins
from support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the local provider")

CONFIGURATION = """\
store = "{store}"

[artifacts]
repository = "{repository}"

[images.app]
provider = "local"
artifact = "app@1.0"
install = ['tar -xf "$ARTIFACT" -C "$PREFIX"']
verify = ['test -f "$PREFIX/app.py"']

[templates.staging]
image = "app"
command = "exec {python} -S -E $PREFIX/app.py $HOST $PORT"
port = 8080
ready = {{ tcp = true, timeout = "30s" }}
"""

TEST = """
import os, time
from pathlib import Path
from client import get

def test_it_answers(ephemeral_url):
    assert get(ephemeral_url) == "plain"

def test_that_waits(ephemeral_url):
    if "WAIT" in os.environ:
        Path("waiting").touch()
        time.sleep(60)
"""


class Machine:
    """A folder with the project, and with the state of a machine of its own.

    A baked image has the same path on every machine, so they share the image root, which a test
    empties to change from one machine to another.
    """

    def __init__(self, folder: Path, root: Path, store: str, repository: str) -> None:
        self.folder = folder
        self.environ = {
            **os.environ,
            "PYTEST_EPHEMERAL_STATE": str(folder / "state"),
            "PYTEST_EPHEMERAL_PREFIX_ROOT": str(root),
            "PYTEST_ADDOPTS": without_plugins(),
        }
        folder.mkdir()
        (folder / "test_it.py").write_text(TEST)
        (folder / "client.py").write_text(CLIENT)
        (folder / "ephemeral.toml").write_text(
            CONFIGURATION.format(store=store, repository=repository, python=sys.executable)
        )

    def start(self, *command: str, **environ: str) -> subprocess.Popen[str]:
        """Start pytest or pytest-ephemeral in the folder."""
        program = Path(sys.executable).with_name(command[0])
        return subprocess.Popen(
            [program, *command[1:]],
            cwd=self.folder,
            env={**self.environ, **environ},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *command: str) -> str:
        """The output of a command, which must succeed."""
        process = self.start(*command)
        printed, said = process.communicate(timeout=120)
        assert process.returncode == 0, printed + said
        return printed

    def json(self, *command: str) -> Any:
        """The JSON output of a pytest-ephemeral command."""
        return json.loads(self.run("pytest-ephemeral", *command, "--json"))


@pytest.fixture
def store(bucket: str) -> Store:
    return open_store(f"s3://{bucket}/team/shop", Path("/"))


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "root"
    tree.remove(tmp_path / "root")


@pytest.fixture(params=["s3", "http"])
def machines(
    request: pytest.FixtureRequest, tmp_path: Path, root: Path, store: Store, http: Files
) -> list[Machine]:
    """Two machines, of which the first has baked the image; its local tree is removed."""
    repository = f"{store.url}/artifacts" if request.param == "s3" else f"{http.url}/builds"
    first, second = (Machine(tmp_path / name, root, store.url, repository) for name in "ab")
    (first.folder / "app.py").write_text(APPLICATION)
    subprocess.run(["tar", "-cf", "app-1.0.tar.gz", "app.py"], cwd=first.folder, check=True)
    first.run("pytest-ephemeral", "artifact", "push", "app-1.0.tar.gz")
    first.run("pytest-ephemeral", "bake")
    tree.remove(root)
    return [first, second]


def test_another_machine_tests_a_baked_image(machines, store):
    """The image comes from the store without a bake, and the first machine sees the result."""
    first, second = machines
    printed = second.run(
        *("pytest", "--ephemeral-env", "--ephemeral-bake", "never", "--ephemeral-report", "r.json"),
        *("--ephemeral-stage", "acceptance"),
    )
    assert "2 passed" in printed
    (image,) = first.json("images", "list")["images"]
    (tested,) = json.loads((second.folder / "r.json").read_text())["environments"]
    assert tested["image"]["key"] == image["key"]
    assert tested["state"] == "destroyed"
    assert first.json("list")["environments"] == []
    (stage,) = store.paths("stages")
    assert stage.split("/")[:3] == ["stages", image["key"].removeprefix("sha256:"), "acceptance"]


@pytest.mark.parametrize("machines", ["s3"], indirect=True)
def test_a_killed_run_leaves_no_record(machines, store):
    """The record is removed from S3 after the owner is killed, without a reap."""
    first, second = machines
    process = second.start("pytest", "--ephemeral-env", WAIT="1")
    try:
        until((second.folder / "waiting").exists, within=60)
        (running,) = first.json("list")["environments"]
        assert running["state"] == "ready"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    until(lambda: not list(store.paths("environments")))
