"""Daemons that outlive their environment's guard."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from pytest_ephemeral.environments import reaper, removal
from pytest_ephemeral.errors import DestroyError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.project import Project
from pytest_ephemeral.providers.local import LocalProvider, mounts
from pytest_ephemeral.providers.local.tables import LocalTemplate
from pytest_ephemeral.providers.protocol import Order
from support.local_owner import (
    DAEMON,
    Own,
    describe,
    find_remains,
    labelled_processes,
    own,
    read_launched,
    state,
)
from support.waiting import until

__all__ = ["own", "state"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


#: A daemon that has cleared its variables, as ``env -i``, PostgreSQL and nginx do.
BARE_DAEMON = "(env -i setsid sleep 1000 &) ; exec sleep 1000"


def _processes_with_its_mount(launched: Environment) -> list[int]:
    """Processes that have the environment's own mount, according to /proc."""
    folder = launched.handle["folder"]
    found = []
    for path in Path("/proc").glob("[0-9]*/mountinfo"):
        with suppress(OSError):
            if f" {folder}/labels.json " in path.read_text():
                found.append(int(path.parent.name))
    return found


def _processes_in_its_folder(launched: Environment) -> list[int]:
    """The ``sleep`` processes in the environment's folder, according to /proc, sorted by ID."""
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
    """After owner and guard are killed, the daemon is found by the mount that it sees."""
    process, environment = own(BARE_DAEMON)
    launched = read_launched(process)
    until(lambda: len(_processes_with_its_mount(launched)) == 3)
    os.kill(int(launched.handle["supervisor"]), signal.SIGSTOP)
    process.kill()
    os.kill(int(launched.handle["supervisor"]), signal.SIGKILL)
    until(lambda: len(_processes_with_its_mount(launched)) == 1)
    assert labelled_processes(environment) == []
    LocalProvider().destroy(launched)
    assert _processes_with_its_mount(launched) == []
    assert find_remains(environment) == []


def test_doctor_reports_that_nothing_can_be_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without mounts, a daemon that clears its variables can't be found."""
    monkeypatch.setattr(mounts, "refusal", lambda: "Operation not permitted")

    said = {check.name: check for check in LocalProvider().doctor()}["read-only images"]

    assert not said.ok
    assert said.detail == "Operation not permitted"
    assert "a daemon that clears its variables is not found" in " ".join(said.hint.split()).lower()


def test_the_owner_finds_a_daemon_whose_guard_was_killed() -> None:
    """The process that launched the environment finds it as well as another process does."""
    environment = describe()
    template = LocalTemplate(name="staging", command=DAEMON, port=18491)
    launched = LocalProvider().launch(Order(environment=environment, template=template))
    until(lambda: len(labelled_processes(environment)) == 3)
    os.kill(int(launched.handle["supervisor"]), signal.SIGKILL)
    until(lambda: len(labelled_processes(environment)) == 1)
    LocalProvider().destroy(launched)
    assert find_remains(environment) == []


#: Drops the capability that mounts need on Linux, and that containers rarely have.
WITHOUT_MOUNTS = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up a capability")
def test_reap_without_mounts_names_what_may_be_left(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that nothing leads to is reported once, with exit status 6."""
    process, environment = own(BARE_DAEMON, within=WITHOUT_MOUNTS)
    launched = read_launched(process)
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
