"""pytest and its workers as clients of the owner process."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pytest_ephemeral.broker import connection
from pytest_ephemeral.broker.process import OwnerProcess
from pytest_ephemeral.broker.protocol import ClientProcess, Key, Settings
from pytest_ephemeral.errors import ConfigurationError, OwnerLostError


@pytest.fixture
def owner(project) -> Iterator[OwnerProcess]:
    """An owner process with an open run."""
    process = OwnerProcess()
    taken = ClientProcess(dict(os.environ), tuple(sys.path))
    process.client.open(Settings(start=project.folder), taken)()
    yield process
    process.client.finish(lambda: None)
    process.leave()


def test_a_run_may_end_before_its_opening_is_awaited(project):
    """pytest may refuse an option while the run is still being opened."""
    process = OwnerProcess()
    taken = ClientProcess(dict(os.environ), tuple(sys.path))
    opening = process.client.open(Settings(start=project.folder), taken)
    process.client.dismiss()
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(opening)
        try:
            assert project.one in opened.result(timeout=20).templates
        finally:
            process.client.close()  # a thread that still waits ends
    process.leave()


@pytest.mark.skipif(sys.platform != "linux", reason="its socket has a name there")
def test_a_silent_connection_delays_no_client(project, owner, monkeypatch):
    """A connection that sends a wrong key, or no key in time, is closed."""
    strangers = []
    for _ in range(5):
        stranger = socket.socket(socket.AF_UNIX)
        stranger.connect(owner.client.address)
        strangers.append(stranger)
    strangers[0].sendall(b"x" * connection.KEY_LENGTH)
    strangers[0].settimeout(5)
    assert strangers[0].recv(1) == b""
    assert owner.client.lease(Key(project.one, "session", "")).url
    monkeypatch.setattr(connection, "HANDSHAKE_TIMEOUT", 0.1)
    ours, theirs = socket.socketpair()
    assert connection.accept(theirs, connection.new_key()) is None
    assert ours.recv(1) == b""
    for stranger in [*strangers, ours]:
        stranger.close()


@pytest.mark.skipif(
    sys.platform != "linux" or os.getuid() != 0, reason="needs another uid, as root"
)
def test_a_connection_of_another_user_is_refused(project, owner):
    """The key alone is not enough: the kernel reports the user at the other end."""
    stranger = """
import os, socket, sys
os.setuid(65534)
end = socket.socket(socket.AF_UNIX)
end.connect(bytes.fromhex(sys.argv[1]).decode())
try:
    end.sendall(bytes.fromhex(sys.argv[2]))
    data = end.recv(1)
except OSError:
    data = b""
sys.exit(len(data))
"""
    address, key = owner.client.address.encode().hex(), owner.client.key.hex()
    done = subprocess.run([sys.executable, "-c", stranger, address, key], check=False, timeout=20)
    assert done.returncode == 0


def test_a_system_without_forks_is_a_usage_error(project, run, monkeypatch):
    """On Windows, the message names the Linux subsystem."""
    project.write(test_it="def test_it(ephemeral_env): pass")
    monkeypatch.delattr(os, "fork")
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "use the Linux subsystem" in result.stderr.str() + result.stdout.str()


def test_methods_not_meant_for_clients_are_refused(owner):
    """Clients may call only the methods that are meant for them."""
    with pytest.raises(Exception, match="no such request: end_all"):
        owner.client.ask("end_all")


def test_an_error_keeps_its_class_between_processes(project):
    """The client gets a ``ConfigurationError`` as if there were no other process."""
    process = OwnerProcess()
    try:
        opening = process.client.open(
            Settings(start=project.folder, template="nowhere"), ClientProcess(dict(os.environ), ())
        )
        for _ in range(2):  # each call raises it
            with pytest.raises(ConfigurationError, match="no template 'nowhere'"):
                opening()
    finally:
        process.leave()
    with pytest.raises(OwnerLostError):
        process.client.lease(Key("a", "session", ""))


NOTES = """
def note(text):
    with open({notes!r}, "a") as file:
        print(text, file=file)
def pytest_ephemeral_environment_ready(environment): note(f"{name} ready")
def pytest_ephemeral_environment_stopped(outcome, config):
    note(f"{name} {{outcome}} {{config.option.ephemeral_env}}")
"""


@pytest.mark.parametrize("arguments", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_hooks_in_a_nested_conftest_are_called_once(project, run, arguments):
    """Each hook is called once per event, with and without workers, also if the end is slow."""
    slow = "grace = '0.6s'\ncommand = \"trap '' TERM; exec"
    project.reconfigure('command = "exec', slow)
    notes = str(project.folder / "notes")
    project.write(
        conftest=NOTES.format(notes=notes, name="root"), test_it="def test_it(ephemeral_env): pass"
    )
    below = project.folder / "below"
    below.mkdir()
    (below / "conftest.py").write_text(
        NOTES.format(notes=notes, name="below")
        + """
import msgspec
def pytest_ephemeral_modify_template(template):
    return msgspec.structs.replace(template, env={"FLAVOUR": "changed"})
"""
    )
    (below / "test_below.py").write_text(
        "from client import get\n"
        "def test_below(ephemeral_env): assert get(ephemeral_env.url) == 'changed'\n"
    )
    run(*arguments).assert_outcomes(passed=2)
    noted = (project.folder / "notes").read_text().splitlines()
    assert sorted(noted) == [
        "below destroyed True",
        "below ready",
        "root destroyed True",
        "root ready",
    ]


@pytest.mark.parametrize("arguments", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_planning_errors_are_reported_in_one_message(project, run, arguments):
    """A missing file of a stack, for example, is a usage error without a traceback."""
    project.configure(
        '[templates.stack]\nprovider = "cloudformation"\nfile = "nowhere.yaml"\n'
        'url = "{output:Url}"\n'
    )
    project.write(test_it="def test_it(ephemeral_env): pass")
    result = run(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    output = result.stdout.str() + result.stderr.str()
    assert "nowhere.yaml" in output
    assert "INTERNALERROR" not in output
    assert "Traceback" not in output


EARLY = """
from pytest_ephemeral import early_environment
def pytest_sessionstart(session):
    found = early_environment(session.config)
    if found:
        with open("early", "a") as file:
            print(found.id, get(found.url), file=file)
"""


@pytest.mark.parametrize("arguments", [[], ["-n", "2"]], ids=["alone", "xdist"])
@pytest.mark.parametrize("ini", [True, False], ids=["with pytest", "when asked for"])
def test_an_early_environment_is_available_before_collection(
    project, run, pytester, arguments, ini
):
    """``pytest_sessionstart`` gets the same environment as the tests."""
    if ini:
        pytester.makeini(f"[pytest]\nephemeral_early = {project.one}")
    project.write(
        conftest=EARLY,
        test_it="""
from pathlib import Path
def test_it(ephemeral_env): assert ephemeral_env.id in Path("early").read_text()
""",
    )
    result = run(*arguments)
    result.assert_outcomes(passed=1)
    told = (project.folder / "early").read_text().splitlines()
    assert len(set(told)) == 1
    assert len(told) == (3 if arguments else 1)
    assert all(line.endswith(" plain") for line in told)


def test_an_unused_early_environment_is_destroyed(project, run, pytester):
    """The environment is launched without a test; an unknown template is a usage error."""
    pytester.makeini(f"[pytest]\nephemeral_early = {project.one}")
    project.write(test_it="import time\ndef test_it(): time.sleep(1)")
    result = run()
    result.assert_outcomes(passed=1)
    assert re.search(rf"{project.one}-\w+ is up at", result.stdout.str())
    pytester.makeini("[pytest]\nephemeral_early = nowhere")
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "no template 'nowhere'" in result.stdout.str() + result.stderr.str()


def test_early_environment_returns_none_without_the_option(project, pytester):
    """Without ``--ephemeral-env``, no environment is launched early."""
    project.write(conftest=EARLY, test_it="def test_it(): pass")
    pytester.runpytest_inprocess("-p", "no:randomly").assert_outcomes(passed=1)
    assert not (project.folder / "early").exists()


def test_many_function_environments_are_summarized(project, run):
    """40 environments take at most four lines of output."""
    project.write(
        test_it="""
@pytest.mark.parametrize("n", range(40))
def test_it(ephemeral_env_function, n): pass
"""
    )
    result = run()
    result.assert_outcomes(passed=40)
    ours = [line for line in result.outlines if project.one in line]
    assert len(ours) <= 4, "\n".join(ours)
    result.stdout.fnmatch_lines([f"{project.one}: 40 environments, all ended (-v lists them)"])


def test_many_module_environments_are_summarized(project, run):
    """After the first twelve, no more URLs are printed."""
    project.write(
        **{f"test_{n}": "def test_it(ephemeral_env_module): pass" for n in range(16)}  # type: ignore[arg-type]
    )
    result = run()
    result.assert_outcomes(passed=16)
    assert sum(" is up at " in line for line in result.outlines) == 12
    assert "more environments come up (-v lists them)" in result.stdout.str()
