"""``require-signature``: tests, ``up`` and ``promote`` refuse an image that is not signed.

The keys are made by openssl, as the documentation says. The tests check what users see: exit
statuses, the hosts file, and running environments.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import processes
from support.keys import make_keys
from support.plugin_project import PluginProject, make_project

CONFIGURATION = """\
{requirement}
[images.app]
provider = "local"
install = ['cp "{source}" "$PREFIX/app.py"']

[templates.{one}]
image = "app"
command = "exec {python} -S -E $PREFIX/app.py $HOST $PORT"
port = 8080

[promotion.production]
dns = "hosts"
record = "app.example.test"
file = "hosts"
drain = "100ms"
keep-old = "{keep}"
"""


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PluginProject]:
    """A project with a key pair, an image, a test and a production name."""
    made = make_project(tmp_path, monkeypatch, tmp_path_factory)
    make_keys(tmp_path)
    made.write(test_it="def test_it(ephemeral_env):\n    assert get(ephemeral_env.url)\n")
    require(made, signature=False)
    yield made
    require(made, signature=False)
    made.end_production()


def require(project: PluginProject, *, signature: bool, keep: str = "100ms") -> None:
    """Write the configuration, with ``require-signature`` or without."""
    project.configure(
        CONFIGURATION.format(
            requirement='require-signature = "signing.pub"' if signature else "",
            source=project.folder / "image" / "app.py",
            one=project.one,
            python=sys.executable,
            keep=keep,
        )
    )


def run(project: PluginProject, *words: str, signing: bool = False) -> tuple[int, str]:
    """Run a command, with or without the signing key, and return its exit status and output."""
    variables = {"PYTEST_EPHEMERAL_SIGNING_KEY": "signing.pem"} if signing else {}
    environ = {**os.environ, **variables}
    done = processes.run(
        processes.PROGRAM, *words, folder=project.folder, environ=environ, status=None
    )
    return done.returncode, done.stdout + done.stderr


def run_tests(project: PluginProject) -> tuple[int, str]:
    """Run the project's tests, and return the exit status and the output."""
    process = project.spawn("--ephemeral-env")
    output = process.communicate(timeout=60)[0]
    return process.returncode, output


def test_an_unsigned_image_is_refused_by_every_command(project: PluginProject) -> None:
    """The image was baked, tested and launched before a signature was required."""
    assert run_tests(project)[0] == 0
    assert run(project, "up", project.one)[0] == 0
    (id,) = project.list_ids()

    require(project, signature=True)

    for status, output in (
        run(project, "up", project.one),
        run(project, "promote", id, "--to", "production"),
        run_tests(project),
    ):
        assert status == 1, output
        assert "is not signed" in output, output
    assert project.list_ids() == [id]
    assert not (project.folder / "hosts").exists()


def test_a_rollback_to_an_unsigned_image_is_refused(project: PluginProject) -> None:
    """The image was promoted before a signature was required; the record does not change."""
    require(project, signature=False, keep="1m")
    known: set[str] = set()
    for _ in range(2):
        assert run(project, "up", project.one)[0] == 0
        (id,) = set(project.list_ids()) - known
        known.add(id)
        assert run(project, "promote", id, "--to", "production")[0] == 0
    hosts = (project.folder / "hosts").read_text()

    require(project, signature=True, keep="1m")

    status, output = run(project, "rollback", "production")
    assert status == 1, output
    assert "is not signed" in output, output
    assert (project.folder / "hosts").read_text() == hosts
    require(project, signature=False, keep="1m")
    assert run(project, "rollback", "production")[0] == 0
    assert (project.folder / "hosts").read_text() != hosts


def test_a_signed_image_is_tested_launched_and_promoted(project: PluginProject) -> None:
    """Only the bake has the private key."""
    require(project, signature=True)
    assert run(project, "bake", signing=True)[0] == 0

    assert run_tests(project)[0] == 0
    assert run(project, "up", project.one)[0] == 0
    (id,) = project.list_ids()
    status, output = run(project, "promote", id, "--to", "production")

    assert status == 0, output
    assert "app.example.test" in (project.folder / "hosts").read_text()


def test_a_signature_with_another_key_is_refused(project: PluginProject) -> None:
    """The configuration does not name the key that signed the image."""
    require(project, signature=True)
    assert run(project, "bake", signing=True)[0] == 0
    make_keys(project.folder)

    status, output = run(project, "up", project.one)

    assert status == 1, output
    assert "is not signed by" in output, output
    assert project.list_ids() == []
