"""Whoever is killed, and whenever: what ran on this machine ends, or is found and ended."""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from pytest_ephemeral import machine, models
from pytest_ephemeral.environments import reaper, removal
from pytest_ephemeral.errors import DestroyError, ElsewhereError, TamperedRecordError
from pytest_ephemeral.labels import ENVIRONMENT_VARIABLE
from pytest_ephemeral.models import Environment
from pytest_ephemeral.project import Project
from pytest_ephemeral.providers.local import LocalProvider, client, mounts
from pytest_ephemeral.providers.local.supervisor.processes import find_marked
from pytest_ephemeral.providers.local.tables import LocalTemplate
from pytest_ephemeral.providers.protocol import Order, Owned
from support.environments import make_environment
from support.processes import command_of
from support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

#: Launches the template, shows the environment, does what the third argument says, and waits.
OWNER = """
import os, sys
from pytest_ephemeral import models
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.protocol import Order
from pytest_ephemeral.providers.local import LocalProvider
from pytest_ephemeral.providers.local.tables import LocalTemplate

environment = models.decode(sys.argv[1].encode(), Environment)
template = LocalTemplate(name="staging", command=sys.argv[2], port=18491)
print("launching", flush=True)
launched = LocalProvider().launch(Order(environment=environment, template=template))
print(models.encode(launched).decode().replace("\\n", ""), flush=True)
exec(sys.argv[3])
sys.stdin.readline()
"""

#: A daemon: forked twice, in a session of its own, its parent gone.
DAEMON = "(setsid sleep 1000 &) ; exec sleep 1000"
#: Leaves a child that lives on, with all that its parent had open.
FORK = "pid = os.fork(); pid and print(pid, flush=True)"

Own = Callable[..., tuple["subprocess.Popen[str]", Environment]]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of this test."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))


@pytest.fixture
def own() -> Iterator[Own]:
    """Start a process that launches an environment: it, and the environment's record before."""
    with ExitStack() as cleanup:

        def start(
            command: str = DAEMON, *, then: str = "", within: Sequence[str] = ()
        ) -> tuple[subprocess.Popen[str], Environment]:
            environment = _describe()
            record = models.encode(environment).decode()
            process = cleanup.enter_context(
                subprocess.Popen(
                    [*within, sys.executable, "-c", OWNER, record, command, then],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            cleanup.callback(process.kill)
            cleanup.callback(LocalProvider().destroy, environment)
            assert process.stdout is not None
            assert process.stdout.readline() == "launching\n"
            return process, environment

        yield start


def _describe() -> Environment:
    """An environment that is not launched yet."""
    return make_environment(f"staging-{secrets.token_hex(3)}", ttl=300)


def _read_launched(process: subprocess.Popen[str]) -> Environment:
    assert process.stdout is not None
    return models.decode(process.stdout.readline().encode(), Environment)


def _labelled_processes(environment: Environment) -> list[int]:
    return find_marked(f"{ENVIRONMENT_VARIABLE}={environment.id}")


def _is_running(environment: Environment) -> bool:
    """Whether its guard, its command and the daemon run, and no shell between them any more."""
    commands = [command_of(pid) for pid in _labelled_processes(environment)]
    return len(commands) == 3 and commands.count(b"sleep\0001000\0") == 2


def _find_remains(environment: Environment) -> list[object]:
    folder = machine.state_directory() / "environments" / environment.id
    return [*_labelled_processes(environment), *(path for path in [folder] if path.exists())]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_guard_ends_with_its_owner(own: Own, number: signal.Signals) -> None:
    """Within two seconds nothing is left, daemons included."""
    process, _ = own()
    environment = _read_launched(process)
    until(lambda: _is_running(environment))
    process.send_signal(number)
    until(lambda: not _find_remains(environment), within=2)


def test_the_guard_ends_though_a_child_of_the_owner_lives(own: Own) -> None:
    """A forked child holds the lifeline open; the guard sees the owner's death all the same."""
    process, _ = own(then=FORK)
    environment = _read_launched(process)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        until(lambda: _is_running(environment))
        process.kill()
        until(lambda: not _find_remains(environment), within=2)
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("attempt", range(8))
def test_a_kill_during_a_launch_leaves_nothing(own: Own, attempt: int) -> None:
    """At whatever instruction: it all ends by itself, or is known to be abandoned and swept."""
    process, environment = own()
    pause = random.uniform(0, 0.04)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(pause)
    process.kill()
    process.wait()
    until(lambda: not _labelled_processes(environment), within=2)
    provider = LocalProvider()
    until(
        lambda: all(
            owned.abandoned or not _find_remains(environment) for owned in provider.list_owned()
        )
    )
    for owned in provider.list_owned():
        provider.sweep(owned)
    assert _find_remains(environment) == []


def test_a_killed_guard_leaves_what_can_be_found(own: Own) -> None:
    """Its processes die with it; a daemon and the folder are found by whoever destroys."""
    process, _ = own()
    environment = _read_launched(process)
    until(lambda: _is_running(environment))
    os.kill(int(environment.handle["supervisor"]), signal.SIGKILL)
    provider = LocalProvider()
    until(lambda: provider.status(environment).state == "gone")
    until(lambda: len(_labelled_processes(environment)) == 1, within=2)
    (owned,) = provider.list_owned()
    assert owned.abandoned
    provider.destroy(environment)
    assert _find_remains(environment) == []


def test_a_terminated_guard_ends_everything(own: Own) -> None:
    """SIGTERM, as from a system that shuts down: it takes everything with it."""
    process, _ = own()
    environment = _read_launched(process)
    until(lambda: _is_running(environment))
    os.kill(int(environment.handle["supervisor"]), signal.SIGTERM)
    until(lambda: not _find_remains(environment), within=2)


def test_a_stopped_guard_is_destroyed(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard that is stopped and answers nobody is destroyed with all it guards."""
    monkeypatch.setattr(client, "END_TIME", 0.3)
    monkeypatch.setattr(client, "ANSWER_TIME", 0.3)
    process, _ = own()
    environment = _read_launched(process)
    until(lambda: _is_running(environment))
    os.kill(int(environment.handle["supervisor"]), signal.SIGSTOP)
    provider = LocalProvider()
    assert "does not answer" in provider.status(environment).detail
    provider.destroy(environment)
    assert _find_remains(environment) == []


def test_a_tampered_record_removes_no_other_folder(own: Own, tmp_path: Path) -> None:
    """A record that was tampered with can't lead destroying to another folder."""
    process, environment = own()
    launched = _read_launched(process)
    until(lambda: _is_running(environment))
    precious = tmp_path / "precious"
    twin = tmp_path / "elsewhere" / "environments" / environment.id
    link = tmp_path / "links" / "environments" / environment.id
    for folder in (precious, twin, link.parent):
        folder.mkdir(parents=True)
        (folder / "file").write_text("precious")
    link.symlink_to(precious)
    past = tmp_path / "environments" / ".." / "precious"
    for folder in (precious, past, Path("/"), twin, link):
        forged = replace(launched, handle={**launched.handle, "folder": str(folder)})
        with pytest.raises(TamperedRecordError):
            LocalProvider().destroy(forged)
    assert [(one / "file").read_text() for one in (precious, twin)] == ["precious", "precious"]
    assert _is_running(environment)
    LocalProvider().destroy(launched)
    assert _find_remains(environment) == []


def test_folders_of_others_with_our_names_are_left_alone(own: Own, tmp_path: Path) -> None:
    """A state folder that is not only ours: nothing in it is seen as an environment, or removed."""
    theirs = tmp_path / "state" / "environments"
    for name in ("production", ".new-0123456789abcdef", "labelled"):
        (theirs / name).mkdir(parents=True)
        (theirs / name / "file").write_text("precious")
        os.utime(theirs / name, (0, 0))
    (theirs / "labelled" / "labels.json").write_text('{"pytest-ephemeral.id": "another"}')
    (theirs / "note").write_text("precious")
    process, environment = own()
    launched = _read_launched(process)

    assert [one.id for one in LocalProvider().list_owned()] == [environment.id]
    for name in ("production", "labelled"):
        with pytest.raises(TamperedRecordError):
            LocalProvider().sweep(Owned(name, {}))
    LocalProvider().destroy(launched)

    assert sorted(one.name for one in theirs.iterdir()) == sorted(
        [".new-0123456789abcdef", "labelled", "note", "production"]
    )
    assert {file.read_text() for file in theirs.rglob("file")} == {"precious"}


def test_the_next_launch_removes_incomplete_folders(own: Own, tmp_path: Path) -> None:
    """A folder of a process that was killed before it had its name."""
    half = tmp_path / "state" / "environments" / ".new-0123456789abcdef"
    (half / "state").mkdir(parents=True)
    (half / "labels.json").write_text('{"pytest-ephemeral.id": "staging-1"}')
    os.utime(half, (0, 0))
    process, _ = own()
    _read_launched(process)
    assert not half.exists()


def test_the_next_launch_removes_folders_set_aside(own: Own, tmp_path: Path) -> None:
    """By a process that was killed; what others call so stays."""
    top = tmp_path / "state" / "environments"
    for name, labels in ((".old-1", '{"pytest-ephemeral.id": "staging-1"}'), (".old-2", "{}")):
        (top / name / "state").mkdir(parents=True)
        (top / name / "labels.json").write_text(labels)
    process, _ = own()
    _read_launched(process)
    assert sorted(path.name for path in top.glob(".old-*")) == [".old-2"]


def test_a_folder_being_removed_never_lacks_its_labels(own: Own) -> None:
    """Never without what says whose it is, which would make it a stranger's to whoever looks."""
    process, _ = own("for n in $(seq 3000); do : > $STATE/$n; done; exec sleep 1000")
    launched = _read_launched(process)
    until(lambda: Path(launched.handle["folder"], "state", "3000").exists())
    provider, said = LocalProvider(), []
    with ThreadPoolExecutor(3) as pool:
        gone = [pool.submit(provider.destroy, launched) for _ in range(3)]
        while not all(one.done() for one in gone):
            said.append(provider.status(launched).state)
            list(provider.list_owned())
    assert [one.exception() for one in gone] == [None] * 3
    assert provider.status(launched).state == "gone"


def test_an_environment_elsewhere_is_never_reported_destroyed(own: Own) -> None:
    """A record of another machine, or of another PID namespace: that can't be seen from here."""
    process, _ = own()
    launched = _read_launched(process)
    for change in ({"machine": "another"}, {"pid_namespace": "pid:[1]"}):
        far = replace(launched, id="staging-far", owner=replace(launched.owner, **change))
        far = replace(far, handle={**far.handle, "folder": "/nowhere/environments/staging-far"})
        with pytest.raises(ElsewhereError, match="its record stays"):
            LocalProvider().destroy(far)


#: A daemon that has nothing of what it was started with: as ``env -i``, PostgreSQL and nginx do.
BARE_DAEMON = "(env -i setsid sleep 1000 &) ; exec sleep 1000"


def _processes_with_its_mount(launched: Environment) -> list[int]:
    """Processes that see the environment's own mount, as /proc says it."""
    folder = launched.handle["folder"]
    found = []
    for path in Path("/proc").glob("[0-9]*/mountinfo"):
        with suppress(OSError):
            if f" {folder}/labels.json " in path.read_text():
                found.append(int(path.parent.name))
    return found


def _processes_in_its_folder(launched: Environment) -> list[int]:
    """Processes whose current folder is the environment's, as /proc says it, the eldest first."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (path / "comm").read_text()
            if (path / "cwd").readlink() == Path(launched.handle["folder"]) / "state":
                found += [int(path.name)] if command == "sleep\n" else []
    return sorted(found)


@pytest.mark.skipif(
    os.geteuid() != 0 or bool(mounts.refusal()), reason="this system lets nobody mount"
)
def test_a_daemon_without_variables_is_found_and_ended(own: Own) -> None:
    """Owner and guard both killed -9: what they started is found by what it sees."""
    process, environment = own(BARE_DAEMON)
    launched = _read_launched(process)
    until(lambda: len(_processes_with_its_mount(launched)) == 3)
    os.kill(int(launched.handle["supervisor"]), signal.SIGSTOP)
    process.kill()
    os.kill(int(launched.handle["supervisor"]), signal.SIGKILL)
    until(lambda: len(_processes_with_its_mount(launched)) == 1)
    assert _labelled_processes(environment) == []
    LocalProvider().destroy(launched)
    assert _processes_with_its_mount(launched) == []
    assert _find_remains(environment) == []


def test_doctor_reports_that_nothing_can_be_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """There a daemon without its variables would not be found: `doctor` says so beforehand."""
    monkeypatch.setattr(mounts, "refusal", lambda: "Operation not permitted")

    said = {check.name: check for check in LocalProvider().doctor()}["read-only images"]

    assert not said.ok
    assert said.detail == "Operation not permitted"
    assert "a daemon that clears its variables is not found" in " ".join(said.hint.split()).lower()


def test_the_owner_finds_a_daemon_whose_guard_was_killed() -> None:
    """The owner that launched it finds it as well as any other process does."""
    environment = _describe()
    template = LocalTemplate(name="staging", command=DAEMON, port=18491)
    launched = LocalProvider().launch(Order(environment=environment, template=template))
    until(lambda: len(_labelled_processes(environment)) == 3)
    os.kill(int(launched.handle["supervisor"]), signal.SIGKILL)
    until(lambda: len(_labelled_processes(environment)) == 1)
    LocalProvider().destroy(launched)
    assert _find_remains(environment) == []


#: Linux lets nobody mount without that, and containers rarely have it.
WITHOUT_MOUNTS = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up a capability")
def test_reap_without_mounts_names_what_may_be_left(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon is left that nothing leads to: that is told once, with exit status 6."""
    process, environment = own(BARE_DAEMON, within=WITHOUT_MOUNTS)
    launched = _read_launched(process)
    until(lambda: len(_processes_in_its_folder(launched)) == 2)
    daemon = _processes_in_its_folder(launched)[-1]
    os.kill(int(launched.handle["supervisor"]), signal.SIGSTOP)
    process.kill()
    process.wait()
    os.kill(int(launched.handle["supervisor"]), signal.SIGKILL)
    until(lambda: _processes_in_its_folder(launched) == [daemon])
    (tmp_path / "ephemeral.toml").touch()
    project = Project.open(tmp_path / "ephemeral.toml", tmp_path)
    expired = replace(launched, expires_at=launched.created_at)
    project.ledger.create(expired, LocalTemplate(name="staging", command=BARE_DAEMON))
    try:
        monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
        every = reaper.reap(project, dry_run=False)
        (found,) = [one for one in every if one.id == environment.id]
        assert f"ps -fp {daemon}" in found.error
        with pytest.raises(DestroyError, match="may still run"):
            reaper.raise_leftovers([found])
        assert _processes_in_its_folder(launched) == []  # its folder is gone
        assert Path(f"/proc/{daemon}").exists()
        assert project.ledger.get(environment.id).problem
    finally:
        os.kill(daemon, signal.SIGKILL)
    removal.remove(project.ledger, project.ledger.get(environment.id))
    assert project.ledger.entries() == []
