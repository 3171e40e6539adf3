"""``rollback``: tests find their environment in its state after readiness and seed."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import entry_points
from support.plugin_project import PluginProject, end, make_project
from support.waiting import eventually

#: Stores the paths of requests in $STATE, and answers with all of them: /tea adds tea.
APPLICATION = """\
import os, socket, sys, time
kept = os.path.join(os.environ["STATE"], "kept")
with open(kept, "a"):
    time.sleep(float(os.environ.get("SLOW", "0")) if os.path.getsize(kept) else 0)
    time.sleep(100 if os.path.exists(os.environ.get("HOLD", "")) else 0)
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("serving", flush=True)
while True:
    connection, _ = server.accept()
    request = connection.recv(65536).decode().split()
    if request and request[1] == "/crash":
        os._exit(7)
    if request and len(request[1]) > 1:
        with open(kept, "a") as file:
            file.write(request[1][1:] + " ")
    with open(kept) as file:
        body = file.read().strip().encode()
    if request:
        head = b"HTTP/1.0 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body)
        connection.sendall(head + body)
    connection.close()
"""

EACH = """
@pytest.mark.parametrize("name", ["tea", "milk", "salt", "rice"])
def test_add(ephemeral_env, name, tmp_path_factory):
    assert get(ephemeral_env.url) == "seed"
    assert get(ephemeral_env.url, f"/{name}") == f"seed {name}"
    assert ephemeral_env.run(["cat", "kept"]).stdout == f"seed {name} "
    with open("seen", "a") as file:
        file.write(f"{ephemeral_env.id} {ephemeral_env.url} {os.getpid()}\\n")
"""


#: A third party's provider without rollback.
PROVIDER = """\
from pytest_ephemeral.providers.local import LocalProvider

class Plain:
    name = "plain"

    def __init__(self):
        self._local = LocalProvider()

    def __getattr__(self, name):
        if "rollback" in name or "baseline" in name or "roll_back" in name:
            raise AttributeError(name)
        return getattr(self._local, name)
"""


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PluginProject]:
    """A project with a seeded application that stores requests; it must leave no traces."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    made = make_project(tmp_path, monkeypatch, tmp_path_factory)
    (made.folder / "image" / "app.py").write_text(APPLICATION)
    ready = 'ready = { tcp = true, timeout = "20s" }'
    made.reconfigure(ready, f"{ready}\nseed = 'printf \"seed \" >> $STATE/kept'")
    yield made
    assert made.clean_within(30), made.traces()


def set_in_template(project: PluginProject, line: str) -> None:
    """Add a line to the default template."""
    project.reconfigure("seed = 'printf", f"{line}\nseed = 'printf")


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_rollback_before_each_test(project: PluginProject, workers: list[str]) -> None:
    """Id and URL stay the same, the time is reported, and workers do not interfere."""
    set_in_template(project, 'rollback = "each"')
    project.write(test_it=EACH)

    output = project.run_tests(
        *workers, "--ephemeral-report=report.json", "--ephemeral-timeline=run.svg"
    )

    assert "4 passed" in output
    seen = [line.split() for line in (project.folder / "seen").read_text().splitlines()]
    processes = len({pid for _, _, pid in seen})
    assert len({(id, url) for id, url, _ in seen}) == processes
    report = json.loads((project.folder / "report.json").read_text())["environments"]
    assert {one["id"] for one in report} >= {id for id, _, _ in seen}
    assert sum(one["rollbacks"] for one in report) == 4 - processes
    assert all(one["seconds"]["baseline"] > 0 for one in report)
    assert sum(one["seconds"].get("rollback", 0) for one in report) > 0
    assert re.search(r"baseline \d\.\d\d s, rollback \d\.\d\d s", output)
    assert ">rollback<" in (project.folder / "run.svg").read_text()


def test_rollback_after_a_failed_test(project: PluginProject) -> None:
    """A passed test causes no rollback; an expected failure counts as a failure."""
    project.write(
        test_it="""
pytestmark = pytest.mark.ephemeral_env(ONE, rollback="failed")
def test_fails(ephemeral_env): assert get(ephemeral_env.url, "/tea") == ""
def test_passes(ephemeral_env): assert get(ephemeral_env.url, "/milk") == "seed milk"
def test_too(ephemeral_env): assert get(ephemeral_env.url, "/rice") == "seed milk rice"
@pytest.mark.xfail
def test_as_expected(ephemeral_env): assert get(ephemeral_env.url, "/salt") == ""
def test_last(ephemeral_env): assert get(ephemeral_env.url) == "seed"
"""
    )
    assert "1 failed, 3 passed, 1 xfailed" in project.run_tests(status=1)


def test_rollback_before_a_late_request(project: PluginProject) -> None:
    """A request by ``request.getfixturevalue`` is not known before the test runs."""
    project.write(
        test_it="""
@pytest.mark.ephemeral_env(rollback="each")
@pytest.mark.parametrize("name", ["tea", "milk"])
def test_add(request, name):
    environment = request.getfixturevalue("ephemeral_env")
    assert get(environment.url, f"/{name}") == f"seed {name}"
"""
    )
    assert "2 passed" in project.run_tests()


def test_rollback_after_a_test_with_the_marker(project: PluginProject) -> None:
    """Unmarked tests see no changes of these tests; a new environment is not rolled back."""
    project.write(
        test_it="""
def test_before(ephemeral_env): assert get(ephemeral_env.url, "/tea") == "seed tea"

@pytest.mark.ephemeral_env(rollback="each")
class TestWipes:
    def test_wipe(self, ephemeral_env): assert get(ephemeral_env.url, "/x") == "seed x"
    def test_own(self, ephemeral_env_function):
        assert get(ephemeral_env_function.url) == "seed"

def test_behind(ephemeral_env): assert get(ephemeral_env.url) == "seed"
def test_last(ephemeral_env): assert get(ephemeral_env.url, "/y") == "seed y"
"""
    )
    project.run_tests("--ephemeral-report=report.json")
    report = json.loads((project.folder / "report.json").read_text())["environments"]
    assert sorted(one["rollbacks"] for one in report) == [0, 2]
    assert [("baseline" in one["seconds"]) for one in report].count(True) == 1


def test_a_crash_is_rolled_back_and_fails_the_run(project: PluginProject) -> None:
    """The next test gets the baseline; the run fails, as no test noticed the crash."""
    set_in_template(project, 'rollback = "each"')
    project.write(
        test_it="""
def test_crashes(ephemeral_env): get(ephemeral_env.url, "/crash")
def test_next(ephemeral_env): assert get(ephemeral_env.url) == "seed"
"""
    )
    output = project.run_tests(status=1)
    assert "2 passed" in output
    assert "exited with status 7" in output


def test_the_reset_command_runs_instead_of_a_rollback(project: PluginProject) -> None:
    """The processes keep running."""
    set_in_template(project, "rollback = 'each'\nreset = 'echo reset; printf \"seed \" > kept'")
    project.write(test_it=EACH)
    project.run_tests("--ephemeral-logs=logs")
    (log,) = (project.folder / "logs").glob("*/*.log")
    assert log.read_text().count("serving") == 1


def test_a_failed_reset_is_reported_in_full_once(project: PluginProject) -> None:
    """The first error has the output; each later error is one line."""
    set_in_template(project, "rollback = 'each'\nreset = 'echo no such table >&2; exit 3'")
    project.write(test_it=EACH)
    output = project.run_tests(status=1)
    assert "1 passed, 3 errors" in output
    assert re.search(r"the reset of .* exited with status 3", output)
    assert "no such table" in output
    assert "(details at the first failure)" in output


def test_invalid_rollback_markers_are_refused_before_tests(project: PluginProject) -> None:
    """One usage error reports all of them, before any launch."""
    markers = ['rollback="always"', "rollback=[]", 'rollback="each", then="run"']
    tests = [
        f"@pytest.mark.ephemeral_env(ONE, {one})\ndef test_{number}(ephemeral_env): open('ran', 'w')"  # noqa: E501
        for number, one in enumerate(markers)
    ]
    project.write(test_it="\n".join(tests))
    output = project.run_tests(status=4)
    assert 'rollback is "each" (before every test) or "failed"' in output
    assert "not 'always'" in output
    assert "not []" in output
    assert "unexpected keyword argument 'then'" in output
    assert not (project.folder / "ran").exists()
    assert not (project.folder / "machine" / "environments").exists()


def test_an_external_database_is_refused_before_tests(project: PluginProject) -> None:
    """The error names the host, without its password, even if a variable contains it."""
    set_in_template(project, "rollback = 'each'\nenv = { DB = 'postgresql://u:secret@{env:AT}/x' }")
    project.write(test_it=EACH)
    output = project.run_tests(env={**os.environ, "AT": "db.corp"}, status=4)
    assert f"templates.{project.one}.env.DB: the database at db.corp is not part of" in output
    assert "secret" not in output
    assert not (project.folder / "machine" / "environments").exists()


@pytest.mark.parametrize(("line", "status"), [("", 4), ("reset = 'true'", 0)])
def test_a_provider_without_rollback_is_refused(
    project: PluginProject, monkeypatch: pytest.MonkeyPatch, line: str, status: int
) -> None:
    """The run is refused before any test, unless the template has a ``reset`` command."""
    (project.folder / "plain.py").write_text(PROVIDER)
    entry_points.register(project.folder, "providers", "plain = plain:Plain")
    monkeypatch.setenv("PYTHONPATH", str(project.folder))
    project.configure(
        f"[templates.{project.one}]\nprovider = 'plain'\nrollback = 'each'\nport = 8080\n{line}\n"
        f"command = 'exec {sys.executable} {project.folder}/image/app.py $HOST $PORT'\n"
    )
    project.write(test_it="def test_one(ephemeral_env): pass\ndef test_two(ephemeral_env): pass\n")
    output = project.run_tests(status=status)
    refused = f"templates.{project.one}: the provider 'plain' can't put an environment back"
    assert (refused in output) == bool(status)


def test_an_attached_environment_can_not_be_rolled_back(project: PluginProject) -> None:
    """An attached environment has no baseline, so the run is refused before any test."""
    set_in_template(project, 'rollback = "each"')
    project.write(test_it=EACH)
    project.command("up", project.one)
    (id,) = project.list_ids()
    try:
        assert "no baseline" in project.run_tests(f"--ephemeral-attach={id}", status=4)
    finally:
        project.command("down", id)


def test_an_expiry_during_a_rollback_is_explained(project: PluginProject) -> None:
    """The error suggests a longer ttl; no later test runs, and no traces are left."""
    hold = project.folder / "hold"
    set_in_template(project, f"rollback = 'each'\nttl = '4s'\nenv = {{ HOLD = '{hold}' }}")
    project.write(
        test_it="""
def test_first(ephemeral_env): open("hold", "w")
def test_next(ephemeral_env): open("next", "w")
def test_last(ephemeral_env): open("next", "w")
"""
    )
    output = project.run_tests(status=1)
    assert "1 passed, 2 errors" in output
    told = re.findall(r"expired at [\d:]{8} UTC, while it was put back", output.split("= ep")[0])
    assert len(told) == 2  # once for each test
    assert f"Give the template {project.one} a longer ttl" in output
    assert "another exception" not in output
    assert not (project.folder / "next").exists()


def test_an_interrupt_during_a_rollback_leaves_nothing(project: PluginProject) -> None:
    """After SIGINT, no traces are left, and no new environment is launched."""
    set_in_template(project, "rollback = 'each'\nenv = { SLOW = '0.5' }")
    project.write(
        test_it="""
def test_first(ephemeral_env): open("first", "w")
def test_next(ephemeral_env): open("next", "w")
"""
    )
    process = project.spawn("--ephemeral-env")
    try:
        assert eventually((project.folder / "first").exists, 60)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    finally:
        end(process)
    assert project.clean_within(30), project.traces()
