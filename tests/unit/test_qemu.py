"""The qemu provider where nothing need be booted: what it refuses, remembers and says."""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pytest_ephemeral.errors import (
    ConfigurationError,
    EnvironmentGoneError,
    EphemeralError,
    UnavailableError,
)
from pytest_ephemeral.providers import load
from pytest_ephemeral.providers.ec2 import user_data
from pytest_ephemeral.providers.local import client, control_socket
from pytest_ephemeral.providers.local.control_socket import GuardAddress
from pytest_ephemeral.providers.qemu import (
    accelerators,
    bases,
    fit,
    machines,
    memory,
    programs,
    qmp,
    replacement,
)
from pytest_ephemeral.providers.qemu.hardware import Hardware
from pytest_ephemeral.providers.qemu.memory import Memory
from pytest_ephemeral.providers.qemu.tables import Download, QemuRecipe, QemuTemplate
from pytest_ephemeral.testing.bench import make_order
from support import processes, web

FITS = {"image": "app sha256:1", "qemu": "QEMU 7.2", "machine": "q35", "template": "{}"}


class Space(NamedTuple):
    """What ``shutil.disk_usage`` gives."""

    total: int
    used: int
    free: int


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A state directory of this test's own."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "machine"))
    accelerators.choose.cache_clear()
    programs.version.cache_clear()
    yield
    accelerators.choose.cache_clear()
    programs.version.cache_clear()


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a shell script in QEMU's place."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(text: str) -> None:
        for name in (programs.SYSTEM, programs.IMG):
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)

    return write


def test_missing_qemu_error_names_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before anything is baked or launched; doctor says the same, and raises nothing."""
    monkeypatch.setenv("PATH", str(tmp_path))
    provider: Any = load("qemu")
    template = QemuTemplate(name="vm", image="app", command="serve", port=80)
    with pytest.raises(UnavailableError, match="apt install qemu-system-x86"):
        provider.preflight(template, [], tmp_path, None)
    (first, second) = provider.doctor()
    assert not first.ok
    assert "apt install qemu-system-x86" in first.hint
    assert "apt install qemu-utils" in second.hint


def test_too_much_memory_is_refused(program: Any, tmp_path: Path) -> None:
    """Before a launch, with what there is."""
    program("exit 0")
    provider: Any = load("qemu")
    template = QemuTemplate(name="vm", image="app", command="serve", port=80, memory="900000G")
    with pytest.raises(ConfigurationError, match=r"templates\.vm\.memory: 900000G is more than"):
        provider.preflight(template, [], tmp_path, None)


def test_a_hanging_accelerator_is_detected(program: Any) -> None:
    """It opens, and then runs nothing: after its time that is an answer."""
    program("exec sleep 60")
    assert accelerators.refusal("kvm", patience=0.2) == "its guest did nothing within 0.2 s"


def test_a_failing_accelerator_reports_the_reason(program: Any) -> None:
    """By QEMU's own last line."""
    program("echo one >&2; echo 'failed to initialize kvm' >&2; exit 1")
    assert accelerators.refusal("kvm") == "failed to initialize kvm"


def test_a_working_accelerator_is_accepted(program: Any) -> None:
    """A guest's first byte is the proof."""
    program("echo SeaBIOS; exec sleep 60")
    assert accelerators.refusal("kvm") == ""


def test_accelerator_results_are_cached_per_qemu_version(
    program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next process asks nobody; another version of QEMU is tried again."""
    tried: list[str] = []

    def refuse(accelerator: str) -> str:
        tried.append(accelerator)
        return "it hangs"

    monkeypatch.setattr(accelerators, "refusal", refuse)
    monkeypatch.setattr(accelerators, "find_candidate", lambda: "kvm")
    program("echo QEMU 1")
    assert accelerators.choose() == "tcg"
    accelerators.choose.cache_clear()
    assert accelerators.choose() == "tcg"
    assert tried == ["kvm"]
    assert accelerators.recall_refusal() == "it hangs"
    program("echo QEMU 2")
    accelerators.choose.cache_clear()
    programs.version.cache_clear()
    accelerators.choose()
    assert tried == ["kvm", "kvm"]


# -- bases ---------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A server of a folder, with one file."""
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / "disk.qcow2").write_bytes(b"a disk")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with web.serving(web.server_of(handler)) as serving:
        yield f"http://127.0.0.1:{serving.server_port}/disk.qcow2"


def test_a_download_with_a_wrong_digest_is_refused(server: str, tmp_path: Path) -> None:
    """It is told which it is, and nothing of it is kept."""
    wrong = Download(url=server, sha256="0" * 64)
    with pytest.raises(ConfigurationError, match=hashlib.sha256(b"a disk").hexdigest()):
        bases.content_of(QemuRecipe(name="app", base=wrong, install=["true"]), tmp_path)
    left = {path.name for path in (tmp_path / "machine" / "downloads").iterdir()}
    assert left == {f"{'0' * 64}.lock"}


def test_a_download_is_fetched_once(server: str, tmp_path: Path, program: Any) -> None:
    """Then it is here."""
    program('echo \'{"format": "qcow2"}\'')
    base = Download(url=server, sha256=hashlib.sha256(b"a disk").hexdigest())
    recipe = QemuRecipe(name="app", base=base, install=["true"])
    assert bases.content_of(recipe, tmp_path).disk.read_bytes() == b"a disk"
    (tmp_path / "www" / "disk.qcow2").unlink()
    assert bases.content_of(recipe, tmp_path).disk.read_bytes() == b"a disk"


def test_an_unreachable_download_server_is_reported(tmp_path: Path) -> None:
    """A message with the address, and no traceback."""
    base = Download(url="http://127.0.0.1:9/disk.qcow2", sha256="0" * 64)
    with pytest.raises(UnavailableError, match=r"disk\.qcow2 can't be fetched"):
        bases.content_of(QemuRecipe(name="app", base=base, install=["true"]), tmp_path)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ('{"format": "vmdk"}', "is vmdk: convert it"),
        ('{"format": "qcow2", "backing-filename": "/etc/shadow"}', "another file, /etc/shadow"),
        (
            '{"format": "qcow2", "format-specific": {"data": {"data-file": "/etc/shadow"}}}',
            "another file, /etc/shadow",
        ),
    ],
)
def test_unsupported_base_disks_are_refused(
    told: str, message: str, program: Any, tmp_path: Path
) -> None:
    """Neither another format, nor one that has other files of this machine read."""
    program(f"echo '{told}'")
    (tmp_path / "disk").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=message):
        bases.content_of(QemuRecipe(name="app", base="disk", install=["true"]), tmp_path)


def test_a_missing_base_file_is_reported_with_its_key(tmp_path: Path) -> None:
    """With the key's path in the configuration."""
    recipe = QemuRecipe(name="app", base="disk.qcow2", install=["true"])
    with pytest.raises(
        ConfigurationError, match=r"images\.app\.base: .*disk\.qcow2 does not exist"
    ):
        bases.inputs_of(recipe, tmp_path)


def test_the_digest_of_a_base_follows_its_content(tmp_path: Path) -> None:
    """It is remembered until anything is written."""
    disk = tmp_path / "disk"
    disk.write_bytes(b"one")
    first = bases.digest_of(disk)
    assert first == bases.digest_of(disk) == f"sha256:{hashlib.sha256(b'one').hexdigest()}"
    disk.write_bytes(b"two")
    assert bases.digest_of(disk) != first


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "give either base"),
        ({"base": "a", "reference": "b", "install": ["true"]}, "give either base"),
        ({"base": "a"}, "give install, too"),
        ({"base": "a", "install": ["true"], "initrd": "i"}, "give kernel"),
    ],
)
def test_contradictory_recipes_are_refused(keys: dict[str, Any], message: str) -> None:
    """Said when the configuration is read."""
    with pytest.raises(ValueError, match=message):
        QemuRecipe(name="app", **keys).check()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is only frozen there")
@pytest.mark.parametrize(
    ("version", "freezes", "kind"),
    [
        ("7.2.22", True, "memfd"),
        ("8.0.5", True, "memfd"),
        ("10.0.13", True, "file"),
        ("10.0.13", False, "memfd"),
    ],
)
def test_the_memory_backend_depends_on_the_qemu_version(
    program: Any, version: str, freezes: bool, kind: str
) -> None:
    """From 8.1 on, QEMU only does that with a file that it opened by its path."""
    program(f"echo 'QEMU emulator version {version} (Debian)'")
    hardware = Hardware("256M", 1, "q35", accelerator="tcg", cpu="Nehalem", freezes=freezes)
    (memory,) = [one for one in hardware.argv(None) if one.startswith("memory-backend-")]
    assert memory.startswith(f"memory-backend-{kind},id=ram,size=268435456,")
    assert memory.endswith("share=on")
    assert bool(hardware.launcher(None)) == (kind == "file")


def test_guest_memory_is_not_stored_in_a_folder(program: Any) -> None:
    """A full /dev/shm would kill a machine: its memory has a path, but is in no folder."""
    program("echo 'QEMU emulator version 10.0.13 (Debian)'")
    hardware = Hardware("256M", 1, "q35", accelerator="tcg", cpu="Nehalem", freezes=True)
    (memory,) = [one for one in hardware.argv(None) if "mem-path=" in one]
    path = memory.partition("mem-path=")[2].partition(",")[0]
    look = ["/bin/sh", "-c", 'readlink "$1"; stat -L -c %s "$1"', "sh", path]
    found = processes.run(*hardware.launcher(None), *look)
    assert found.stdout.splitlines() == ["/memfd:memory-backend-memfd (deleted)", "268435456"]


@pytest.mark.parametrize(
    ("keys", "freezes"),
    [({}, False), ({"warm": True}, True), ({"warm": "booted"}, True), ({"rollback": "each"}, True)],
)
def test_only_warm_and_rollback_templates_freeze_memory(
    keys: dict[str, Any], freezes: bool
) -> None:
    """Others take no room where such memory has to be."""
    given = {"cpu": "Nehalem", "accelerator": "tcg", "command": "serve", **keys}
    template = QemuTemplate(name="vm", image="app", port=80, **given)
    assert Hardware.of(template).freezes == freezes


def test_warm_booted_requires_a_command() -> None:
    """Frozen before it started, an image's own application could never be started."""
    with pytest.raises(ValueError, match="needs a command"):
        QemuTemplate(name="vm", image="app", port=80, warm="booted").check()


# -- memory --------------------------------------------------------------------------------


def frozen(fits: dict[str, str]) -> Memory:
    """Something in the place of frozen memory."""
    one = Memory.of(fits)
    one.folder.mkdir(parents=True)
    for name in ("ram", "state", "disk.qcow2", "fresh.qcow2"):
        (one.folder / name).write_bytes(name.encode())
    one.seal(fits, "sha256:1")
    return one


def test_frozen_memory_is_found_only_if_everything_matches() -> None:
    """And by nothing else; what differs is said."""
    one = frozen(FITS)
    one.require_usable()
    assert Memory.of(dict(FITS)) == one
    other = {**FITS, "qemu": "QEMU 8.0"}
    assert not Memory.of(other).exists()
    assert fit.describe_difference(other) == "the memory that is frozen was made with another qemu"
    unknown = {**FITS, "image": "other sha256:2"}
    assert fit.describe_difference(unknown) == "no memory of it is frozen yet"


@pytest.mark.parametrize("name", ["ram", "state", "disk.qcow2", "fresh.qcow2"])
def test_changed_memory_is_not_resumed(name: str) -> None:
    """Whichever of its files it is, and though its length is the same."""
    one = frozen(FITS)
    (one.folder / name).write_bytes(name.upper().encode())
    os.utime(one.folder / name, ns=(0, 0))
    with pytest.raises(EphemeralError, match=f"{name} has changed since it was frozen"):
        one.require_usable()


def test_memory_without_a_record_is_not_resumed() -> None:
    """As one is that was cut short."""
    one = frozen(FITS)
    (one.folder / "memory.json").write_text("{")
    with pytest.raises(EphemeralError, match=r"no readable memory\.json"):
        one.require_usable()


def test_refused_memory_is_not_resumed() -> None:
    """It says by what."""
    one = frozen(FITS)
    one.refuse("`images vet` found that UUIDs: both have 1")
    with pytest.raises(EphemeralError, match="UUIDs: both have 1"):
        one.require_usable()


def test_freezing_requires_enough_disk_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written, and the message has both numbers."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Space(0, 0, 100 << 20))
    one = Memory.of(FITS)
    with (
        pytest.raises(EphemeralError, match=r"no space for 512 MiB .* 100 MiB are free"),
        one.make(512 << 20),
    ):
        pytest.fail("it was begun")
    assert [path.name for path in one.folder.parent.iterdir()] == []


def test_freezing_removes_old_unused_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """When other is frozen; what was resumed lately stays."""
    old, recent = frozen(FITS), frozen({**FITS, "machine": "pc"})
    os.utime(old.folder, (0, 0))
    monkeypatch.setattr(programs, "create_overlay", lambda *_: None)
    with Memory.of({**FITS, "machine": "new"}).make(1):
        pass
    assert not old.exists()
    assert recent.exists()


def test_copying_memory_preserves_holes(tmp_path: Path) -> None:
    """A machine's memory is mostly holes; what is in it comes over byte for byte."""
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"in the middle")
    memory._copy_sparse(source, tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_blocks * 512 < 1 << 20
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()


# -- what a console tells ------------------------------------------------------------------


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
    """Long before its time is over."""
    found = machines.find_boot_failure(printed)
    assert why in found
    assert bool(found) == bool(why)


def test_last_lines_skip_blank_console_lines() -> None:
    """Those that say something; of none, what may be the reason."""
    assert machines.last_lines("one\n\n  two\n", 1) == "      two"
    assert "console=ttyS0" in machines.last_lines("\n")


def test_a_missing_guest_agent_is_reported(tmp_path: Path) -> None:
    """The port is there, and nobody behind it; the package is named."""
    with socket.socket(socket.AF_UNIX) as port:
        with control_socket._path(GuardAddress("vm-1", tmp_path, "agent")) as path:
            port.bind(path)
        port.listen()
        with pytest.raises(EphemeralError, match="install the package qemu-guest-agent"):
            qmp.open_agent("vm-1", tmp_path, timeout=0.3, each=0.1)


def test_a_missing_monitor_is_reported(tmp_path: Path) -> None:
    """Its QEMU has ended, or never was."""
    with pytest.raises(EphemeralError, match="the monitor of vm-1 is not there"):
        qmp.open_monitor("vm-1", tmp_path, timeout=0.1)


@pytest.mark.parametrize("open_port", [qmp.open_monitor, qmp.open_agent, qmp.open_helper])
def test_connecting_to_an_ended_machine_fails_at_once(tmp_path: Path, open_port: Any) -> None:
    """Its sockets are still there: what is run in it, or freezes it, is told at once."""
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
    """QEMU may exit while it is asked: before its greeting, after it, or with a refusal."""

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
    """A serial console comes letter by letter: a status of 12 is no status of 1."""
    whole, rest = "pytest-ephemeral:app:1| one\r\n", "pytest-ephemeral:end:0| 1"
    assert [line.text for line in user_data.lines(whole + rest)] == ["one"]
    assert user_data.last_words(whole + rest) == ""
    assert user_data.last_words(f"{whole}{rest}2\r\n") == "12"


def test_the_status_of_a_machine_that_just_ended_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its guard answers once, and is gone then: that is a status, and no error."""
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
    """Whoever waits is told: nobody will ever read what starts the next QEMU."""
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
    """Refused before anything is launched, with its host; one in the machine itself is fine."""
    provider: Any = load("qemu")
    for where, ok in (("localhost", True), ("db.example.com", False)):
        environ = {"DATABASE_URL": f"postgresql://shop@{where}/shop"}
        template = QemuTemplate(name="vm", image="app", command="serve", port=80, env=environ)
        if ok:
            provider.check_rollback(template, tmp_path)
            continue
        with pytest.raises(ConfigurationError, match=r"templates\.vm\..*db\.example\.com"):
            provider.check_rollback(template, tmp_path)
