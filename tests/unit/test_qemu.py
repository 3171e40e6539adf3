"""The qemu provider without a running machine: its checks, caches and messages."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from pytest_ephemeral.errors import (
    ConfigurationError,
    UnavailableError,
)
from pytest_ephemeral.providers import load
from pytest_ephemeral.providers.qemu import (
    accelerators,
    bases,
    programs,
)
from pytest_ephemeral.providers.qemu.hardware import Hardware
from pytest_ephemeral.providers.qemu.tables import Download, QemuRecipe, QemuTemplate
from support import processes, web
from support.qemu_state import state_folder

__all__ = ["state_folder"]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace QEMU's programs with a shell script."""
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
    """It is raised before a bake or launch; ``doctor`` reports the same without an error."""
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
    """The check before a launch compares it with the memory of this machine."""
    program("exit 0")
    provider: Any = load("qemu")
    template = QemuTemplate(name="vm", image="app", command="serve", port=80, memory="900000G")
    with pytest.raises(ConfigurationError, match=r"templates\.vm\.memory: 900000G is more than"):
        provider.preflight(template, [], tmp_path, None)


def test_a_hanging_accelerator_is_detected(program: Any) -> None:
    """QEMU starts, but its guest prints nothing within the time limit."""
    program("exec sleep 60")
    assert accelerators.refusal("kvm", patience=0.2) == "its guest did nothing within 0.2 s"


def test_a_failing_accelerator_reports_the_reason(program: Any) -> None:
    """The reason is the last line that QEMU has printed."""
    program("echo one >&2; echo 'failed to initialize kvm' >&2; exit 1")
    assert accelerators.refusal("kvm") == "failed to initialize kvm"


def test_a_working_accelerator_is_accepted(program: Any) -> None:
    """The first output of a guest proves that it works."""
    program("echo SeaBIOS; exec sleep 60")
    assert accelerators.refusal("kvm") == ""


def test_accelerator_results_are_cached_per_qemu_version(
    program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next process uses the saved result, but tries another version of QEMU again."""
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
    """The URL of a disk on an HTTP server."""
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / "disk.qcow2").write_bytes(b"a disk")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with web.serving(web.server_of(handler)) as serving:
        yield f"http://127.0.0.1:{serving.server_port}/disk.qcow2"


def test_a_download_with_a_wrong_digest_is_refused(server: str, tmp_path: Path) -> None:
    """The message has the actual digest, and the file is removed."""
    wrong = Download(url=server, sha256="0" * 64)
    with pytest.raises(ConfigurationError, match=hashlib.sha256(b"a disk").hexdigest()):
        bases.content_of(QemuRecipe(name="app", base=wrong, install=["true"]), tmp_path)
    left = {path.name for path in (tmp_path / "machine" / "downloads").iterdir()}
    assert left == {f"{'0' * 64}.lock"}


def test_a_download_is_fetched_once(server: str, tmp_path: Path, program: Any) -> None:
    """After that, the server is not needed."""
    program('echo \'{"format": "qcow2"}\'')
    base = Download(url=server, sha256=hashlib.sha256(b"a disk").hexdigest())
    recipe = QemuRecipe(name="app", base=base, install=["true"])
    assert bases.content_of(recipe, tmp_path).disk.read_bytes() == b"a disk"
    (tmp_path / "www" / "disk.qcow2").unlink()
    assert bases.content_of(recipe, tmp_path).disk.read_bytes() == b"a disk"


def test_an_unreachable_download_server_is_reported(tmp_path: Path) -> None:
    """The message names the file that can't be fetched."""
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
    """They have another format, or would make QEMU read other files of this machine."""
    program(f"echo '{told}'")
    (tmp_path / "disk").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=message):
        bases.content_of(QemuRecipe(name="app", base="disk", install=["true"]), tmp_path)


def test_a_missing_base_file_is_reported_with_its_key(tmp_path: Path) -> None:
    """The message has the key's path in the configuration."""
    recipe = QemuRecipe(name="app", base="disk.qcow2", install=["true"])
    with pytest.raises(
        ConfigurationError, match=r"images\.app\.base: .*disk\.qcow2 does not exist"
    ):
        bases.inputs_of(recipe, tmp_path)


def test_the_digest_of_a_base_follows_its_content(tmp_path: Path) -> None:
    """It is cached until the file is written."""
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
    """``check`` is called when the configuration is read."""
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
    """From 8.1 on, migration leaves memory out only if QEMU opened it by a path."""
    program(f"echo 'QEMU emulator version {version} (Debian)'")
    hardware = Hardware("256M", 1, "q35", accelerator="tcg", cpu="Nehalem", freezes=freezes)
    (memory,) = [one for one in hardware.argv(None) if one.startswith("memory-backend-")]
    assert memory.startswith(f"memory-backend-{kind},id=ram,size=268435456,")
    assert memory.endswith("share=on")
    assert bool(hardware.launcher(None)) == (kind == "file")


def test_guest_memory_is_not_stored_in_a_folder(program: Any) -> None:
    """A full /dev/shm would kill a machine, so its memory is a memfd with a path in /proc."""
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
    """Machines of other templates are never frozen."""
    given = {"cpu": "Nehalem", "accelerator": "tcg", "command": "serve", **keys}
    template = QemuTemplate(name="vm", image="app", port=80, **given)
    assert Hardware.of(template).freezes == freezes


def test_warm_booted_requires_a_command() -> None:
    """The memory is frozen before the application starts, so only a command can start it."""
    with pytest.raises(ValueError, match="needs a command"):
        QemuTemplate(name="vm", image="app", port=80, warm="booted").check()
