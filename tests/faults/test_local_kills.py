"""After any kill, an environment on this machine ends by itself, or is found and ended."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from pytest_ephemeral.errors import ElsewhereError, TamperedRecordError
from pytest_ephemeral.providers.local import LocalProvider, client
from pytest_ephemeral.providers.protocol import Owned
from support.local_owner import (
    Own,
    find_remains,
    is_running,
    labelled_processes,
    own,
    read_launched,
    state,
)
from support.waiting import until

__all__ = ["own", "state"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


#: Forks a child that lives on, with all open files of its parent.
FORK = "pid = os.fork(); pid and print(pid, flush=True)"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_guard_ends_with_its_owner(own: Own, number: signal.Signals) -> None:
    """Within two seconds nothing is left, daemons included."""
    process, _ = own()
    environment = read_launched(process)
    until(lambda: is_running(environment))
    process.send_signal(number)
    until(lambda: not find_remains(environment), within=2)


def test_the_guard_ends_though_a_child_of_the_owner_lives(own: Own) -> None:
    """A forked child holds the lifeline open, but the guard still detects the owner's death."""
    process, _ = own(then=FORK)
    environment = read_launched(process)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        until(lambda: is_running(environment))
        process.kill()
        until(lambda: not find_remains(environment), within=2)
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("attempt", range(8))
def test_a_kill_during_a_launch_leaves_nothing(own: Own, attempt: int) -> None:
    """After a kill at a random moment, the environment ends, or is abandoned and then swept."""
    process, environment = own()
    pause = random.uniform(0, 0.04)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(pause)
    process.kill()
    process.wait()
    until(lambda: not labelled_processes(environment), within=2)
    provider = LocalProvider()
    until(
        lambda: all(
            owned.abandoned or not find_remains(environment) for owned in provider.list_owned()
        )
    )
    for owned in provider.list_owned():
        provider.sweep(owned)
    assert find_remains(environment) == []


def test_a_killed_guard_leaves_what_can_be_found(own: Own) -> None:
    """Its processes die with it; destroy finds the daemon and the folder."""
    process, _ = own()
    environment = read_launched(process)
    until(lambda: is_running(environment))
    os.kill(int(environment.handle["supervisor"]), signal.SIGKILL)
    provider = LocalProvider()
    until(lambda: provider.status(environment).state == "gone")
    until(lambda: len(labelled_processes(environment)) == 1, within=2)
    (owned,) = provider.list_owned()
    assert owned.abandoned
    provider.destroy(environment)
    assert find_remains(environment) == []


def test_a_terminated_guard_ends_everything(own: Own) -> None:
    """SIGTERM, as at a system shutdown, ends the guard and all its processes."""
    process, _ = own()
    environment = read_launched(process)
    until(lambda: is_running(environment))
    os.kill(int(environment.handle["supervisor"]), signal.SIGTERM)
    until(lambda: not find_remains(environment), within=2)


def test_a_stopped_guard_is_destroyed(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """A suspended guard does not answer, and is destroyed with all its processes."""
    monkeypatch.setattr(client, "END_TIME", 0.3)
    monkeypatch.setattr(client, "ANSWER_TIME", 0.3)
    process, _ = own()
    environment = read_launched(process)
    until(lambda: is_running(environment))
    os.kill(int(environment.handle["supervisor"]), signal.SIGSTOP)
    provider = LocalProvider()
    assert "does not answer" in provider.status(environment).detail
    provider.destroy(environment)
    assert find_remains(environment) == []


def test_a_tampered_record_removes_no_other_folder(own: Own, tmp_path: Path) -> None:
    """Destroy refuses a record whose folder is not the environment's own."""
    process, environment = own()
    launched = read_launched(process)
    until(lambda: is_running(environment))
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
    assert is_running(environment)
    LocalProvider().destroy(launched)
    assert find_remains(environment) == []


def test_folders_of_others_with_our_names_are_left_alone(own: Own, tmp_path: Path) -> None:
    """Foreign folders in the state folder are neither listed as environments nor removed."""
    theirs = tmp_path / "state" / "environments"
    for name in ("production", ".new-0123456789abcdef", "labelled"):
        (theirs / name).mkdir(parents=True)
        (theirs / name / "file").write_text("precious")
        os.utime(theirs / name, (0, 0))
    (theirs / "labelled" / "labels.json").write_text('{"pytest-ephemeral.id": "another"}')
    (theirs / "note").write_text("precious")
    process, environment = own()
    launched = read_launched(process)

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
    """A launch that is killed before it renames its folder leaves one."""
    half = tmp_path / "state" / "environments" / ".new-0123456789abcdef"
    (half / "state").mkdir(parents=True)
    (half / "labels.json").write_text('{"pytest-ephemeral.id": "staging-1"}')
    os.utime(half, (0, 0))
    process, _ = own()
    read_launched(process)
    assert not half.exists()


def test_the_next_launch_removes_folders_set_aside(own: Own, tmp_path: Path) -> None:
    """A removal that is killed leaves one; a foreign folder with such a name stays."""
    top = tmp_path / "state" / "environments"
    for name, labels in ((".old-1", '{"pytest-ephemeral.id": "staging-1"}'), (".old-2", "{}")):
        (top / name / "state").mkdir(parents=True)
        (top / name / "labels.json").write_text(labels)
    process, _ = own()
    read_launched(process)
    assert sorted(path.name for path in top.glob(".old-*")) == [".old-2"]


def test_a_folder_being_removed_never_lacks_its_labels(own: Own) -> None:
    """Without its labels, a concurrent destroy would take the folder for a foreign one."""
    process, _ = own("for n in $(seq 3000); do : > $STATE/$n; done; exec sleep 1000")
    launched = read_launched(process)
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
    """An environment of another machine or PID namespace can't be seen from here."""
    process, _ = own()
    launched = read_launched(process)
    for change in ({"machine": "another"}, {"pid_namespace": "pid:[1]"}):
        far = replace(launched, id="staging-far", owner=replace(launched.owner, **change))
        far = replace(far, handle={**far.handle, "folder": "/nowhere/environments/staging-far"})
        with pytest.raises(ElsewhereError, match="its record stays"):
            LocalProvider().destroy(far)
