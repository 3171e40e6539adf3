"""Processes, as names and labels have them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from msgspec.structs import replace

from pytest_ephemeral import machine


def test_a_process_is_gone_when_it_has_ended() -> None:
    """While it runs it is not, and neither is this one."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        started = machine.process_started(other.pid)
        owner = replace(machine.this_owner("run"), pid=other.pid, started=started)
        process = machine.process_of(owner)
        assert not machine.is_gone(process)
        other.kill()
    assert machine.is_gone(process)
    assert not machine.is_gone(machine.process_of(machine.this_owner("run")))


@pytest.mark.parametrize("changed", [{"started": "0"}, {"boot": "another"}])
def test_another_with_its_id_is_not_the_same(changed: dict[str, str]) -> None:
    """Process ids are used again, after a boot and before."""
    owner = replace(machine.this_owner("run"), **changed)
    assert machine.is_gone(machine.process_of(owner))


@pytest.mark.parametrize("process", ["", "1", "1.2", "x.y.z", "..", "1.2.3", "f00ba4"])
def test_of_what_was_written_otherwise_nothing_is_known(process: str) -> None:
    """So that nobody removes it."""
    assert not machine.is_gone(process)


def test_of_another_machine_nothing_is_known() -> None:
    """Even where no process has the id."""
    owner = replace(machine.this_owner("run"), host="elsewhere", pid=2**22 + 1)
    assert not machine.is_gone(machine.process_of(owner))
