"""Owner processes, and their identifiers in names and labels."""

from __future__ import annotations

import subprocess
import sys

import pytest
from msgspec.structs import replace

from pytest_ephemeral import machine


def test_is_gone_is_true_only_after_the_process_ends() -> None:
    """It is false for a running process, such as this one."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        started = machine.read_process_start(other.pid)
        owner = replace(machine.this_owner("run"), pid=other.pid, started=started)
        process = machine.process_of(owner)
        assert not machine.is_gone(process)
        other.kill()
    assert machine.is_gone(process)
    assert not machine.is_gone(machine.process_of(machine.this_owner("run")))


def test_a_reused_process_id_does_not_match() -> None:
    """The start time identifies a process, as process ids are reused."""
    owner = replace(machine.this_owner("run"), started="0")
    assert machine.is_gone(machine.process_of(owner))
    assert machine.is_alive(owner) is False


@pytest.mark.parametrize("attribute", ["machine", "boot", "pid_namespace"])
def test_owners_on_another_machine_or_boot_are_unknown(attribute: str) -> None:
    """Processes of a cloned machine, or of a container with this host's name, can't be seen."""
    owner = replace(machine.this_owner("run"), **{attribute: "another"}, pid=2**22 + 1)
    assert not machine.is_gone(machine.process_of(owner))
    assert machine.is_alive(owner) is None


def test_the_age_of_an_owner_is_measured_by_uptime() -> None:
    """It is unknown for another boot, and for a record without an uptime."""
    owner = machine.this_owner("run")
    assert machine.age(owner) == pytest.approx(0.0, abs=5.0)
    assert machine.age(replace(owner, uptime=owner.uptime - 60)) == pytest.approx(60.0, abs=5.0)
    assert machine.age(replace(owner, boot="another")) is None
    assert machine.age(replace(owner, uptime=0.0)) is None


@pytest.mark.parametrize("process", ["", "1", "1.2", "x.y.z", "..", "1.2.3", "f00ba4"])
def test_malformed_process_identifiers_are_not_gone(process: str) -> None:
    """Otherwise, resources with such an identifier would be removed."""
    assert not machine.is_gone(process)


def test_processes_of_another_machine_are_not_gone() -> None:
    """This holds even if no process on this machine has the same id."""
    owner = replace(machine.this_owner("run"), machine="elsewhere", pid=2**22 + 1)
    assert not machine.is_gone(machine.process_of(owner))
