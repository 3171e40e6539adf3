"""Consoles and monitors of machines, and machines that end unexpectedly."""

from __future__ import annotations

import gc
import os
import socket
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

from pytest_ephemeral.errors import (
    ConfigurationError,
    EnvironmentGoneError,
    EphemeralError,
)
from pytest_ephemeral.providers import load
from pytest_ephemeral.providers.ec2 import user_data
from pytest_ephemeral.providers.local import client, control_socket
from pytest_ephemeral.providers.local.control_socket import GuardAddress
from pytest_ephemeral.providers.qemu import (
    machines,
    qmp,
    replacement,
)
from pytest_ephemeral.providers.qemu.tables import QemuTemplate
from pytest_ephemeral.testing.bench import make_order
from support.qemu_state import state_folder

__all__ = ["state_folder"]

# -- consoles ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "why"),
    [
        ("Kernel panic - not syncing: VFS: Unable to mount root fs", "its kernel panicked"),
        ("Booting from Hard Disk...\nNo bootable device.", "no boot loader"),
        ("BusyBox v1.35\n(initramfs) ", "does not find the root disk"),
        ("[  OK  ] Reached target multi-user.target", ""),
    ],
)
def test_boot_failures_are_detected_from_the_console(printed: str, why: str) -> None:
    """So a failed boot is reported long before the time-out."""
    found = machines.find_boot_failure(printed)
    assert why in found
    assert bool(found) == bool(why)


def test_last_lines_skip_blank_console_lines() -> None:
    """For an empty console, the text has a possible reason."""
    assert machines.last_lines("one\n\n  two\n", 1) == "      two"
    assert "console=ttyS0" in machines.last_lines("\n")


def test_a_missing_guest_agent_is_reported(tmp_path: Path) -> None:
    """The socket exists, but no agent answers. The message names the package to install."""
    with socket.socket(socket.AF_UNIX) as port:
        with control_socket._path(GuardAddress("vm-1", tmp_path, "agent")) as path:
            port.bind(path)
        port.listen()
        with pytest.raises(EphemeralError, match="install the package qemu-guest-agent"):
            qmp.open_agent("vm-1", tmp_path, timeout=0.3, each=0.1)


def test_a_missing_monitor_is_reported(tmp_path: Path) -> None:
    """QEMU has ended, or was never started."""
    with pytest.raises(EphemeralError, match="the monitor of vm-1 is not there"):
        qmp.open_monitor("vm-1", tmp_path, timeout=0.1)


@pytest.mark.parametrize("open_port", [qmp.open_monitor, qmp.open_agent, qmp.open_helper])
def test_connecting_to_an_ended_machine_fails_at_once(tmp_path: Path, open_port: Any) -> None:
    """Its sockets still exist, but a file with QEMU's exit status makes waiting unnecessary."""
    for name in ("monitor", "agent", "restore"):
        with (
            socket.socket(socket.AF_UNIX) as port,
            control_socket._path(GuardAddress("vm-1", tmp_path, name)) as path,
        ):
            port.bind(path)
    (tmp_path / qmp.ENDED).write_text("-9")
    with pytest.raises(qmp.MachineError, match="of vm-1 is not there: QEMU has ended"):
        open_port("vm-1", tmp_path, timeout=1e9)


@pytest.mark.parametrize("said", [b"", b'{"QMP": {}}\n', b'{"QMP": {}}\n{"error": {}}\n'])
def test_a_failed_monitor_connection_leaves_no_open_socket(tmp_path: Path, said: bytes) -> None:
    """QEMU may exit before or after its greeting, or refuse the first command."""

    def answer() -> None:
        with port.accept()[0] as end:
            end.sendall(said)

    with socket.socket(socket.AF_UNIX) as port:
        with control_socket._path(GuardAddress("vm-1", tmp_path, "monitor")) as path:
            port.bind(path)
        port.listen()
        machine = threading.Thread(target=answer)
        machine.start()
        with warnings.catch_warnings(record=True) as unclosed:
            warnings.simplefilter("always")
            gc.freeze()  # so that objects of other tests are not searched, which takes seconds
            with pytest.raises(qmp.MachineError) as raised:
                qmp.open_monitor("vm-1", tmp_path, timeout=5)
            del raised
            gc.collect()
            gc.unfreeze()
        machine.join()
    assert not [str(warning.message) for warning in unclosed]


def test_incomplete_console_lines_are_ignored() -> None:
    """Characters arrive one by one, so an exit status of 12 must not be read as 1."""
    whole, rest = "pytest-ephemeral:app:1| one\r\n", "pytest-ephemeral:end:0| 1"
    assert [line.text for line in user_data.lines(whole + rest)] == ["one"]
    assert user_data.last_words(whole + rest) == ""
    assert user_data.last_words(f"{whole}{rest}2\r\n") == "12"


def test_the_status_of_a_machine_that_just_ended_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its guard answers once and then ends, which is reported as a state, not as an error."""
    answers = iter([{}])

    def ask(_: GuardAddress) -> dict[str, Any]:
        if (found := next(answers, None)) is None:
            raise EnvironmentGoneError("nothing runs of it any more")
        return found

    monkeypatch.setattr(client, "status", ask)
    template = QemuTemplate(name="vm", image="app", command="serve", port=80)
    environment, provider = make_order(template, None).environment, load("qemu")
    assert [provider.status(environment).state for _ in range(2)] == ["running", "gone"]


def test_replacing_a_machine_fails_if_its_guard_dies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a guard, no process reads the pipe that starts the next QEMU process."""
    place = machines.MachineFolder(tmp_path)
    place.state.mkdir()
    (place.state / qmp.ENDED).write_text("0")
    os.mkfifo(place.state / "again")
    disk = tmp_path / "fresh"
    disk.touch()
    left = iter(range(4))

    def ask(_: GuardAddress) -> dict[str, Any]:
        if next(left, None) is None:
            raise EnvironmentGoneError("nothing runs of it any more")
        return {}

    monkeypatch.setattr(client, "status", ask)
    monkeypatch.setattr(machines.Start, "argv", lambda _: ["true"])
    start: Any = machines.Start(hardware=None, content=None, fresh_disk=disk)  # type: ignore[arg-type]
    with pytest.raises(EnvironmentGoneError):
        replacement.replace_machine(place, start)


def test_rollback_with_an_external_database_is_refused(tmp_path: Path) -> None:
    """The message has the database's host. A database in the machine itself is allowed."""
    provider: Any = load("qemu")
    for where, ok in (("localhost", True), ("db.example.com", False)):
        environ = {"DATABASE_URL": f"postgresql://shop@{where}/shop"}
        template = QemuTemplate(name="vm", image="app", command="serve", port=80, env=environ)
        if ok:
            provider.check_rollback(template, tmp_path)
            continue
        with pytest.raises(ConfigurationError, match=r"templates\.vm\..*db\.example\.com"):
            provider.check_rollback(template, tmp_path)
