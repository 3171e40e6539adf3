"""The frozen memory of machines: when it can be resumed, and when it is removed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from pytest_ephemeral.errors import (
    EphemeralError,
)
from pytest_ephemeral.providers.qemu import (
    fit,
    memory,
    programs,
)
from pytest_ephemeral.providers.qemu.memory import Memory
from support.qemu_state import state_folder

__all__ = ["state_folder"]

FITS = {"image": "app sha256:1", "qemu": "QEMU 7.2", "machine": "q35", "template": "{}"}


class Space(NamedTuple):
    """The result of ``shutil.disk_usage``."""

    total: int
    used: int
    free: int


# -- memory --------------------------------------------------------------------------------


def frozen(fits: dict[str, str]) -> Memory:
    """Create files in place of frozen memory."""
    one = Memory.of(fits)
    one.folder.mkdir(parents=True)
    for name in ("ram", "state", "disk.qcow2", "fresh.qcow2"):
        (one.folder / name).write_bytes(name.encode())
    one.seal(fits, "sha256:1")
    return one


def test_frozen_memory_is_found_only_if_everything_matches() -> None:
    """Otherwise, the message names the condition that differs."""
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
    """The changed file may be any of its files, and has the same size as before."""
    one = frozen(FITS)
    (one.folder / name).write_bytes(name.upper().encode())
    os.utime(one.folder / name, ns=(0, 0))
    with pytest.raises(EphemeralError, match=f"{name} has changed since it was frozen"):
        one.require_usable()


def test_memory_without_a_record_is_not_resumed() -> None:
    """Its record is incomplete, as after an interrupted freeze."""
    one = frozen(FITS)
    (one.folder / "memory.json").write_text("{")
    with pytest.raises(EphemeralError, match=r"no readable memory\.json"):
        one.require_usable()


def test_refused_memory_is_not_resumed() -> None:
    """The error has the reason of the refusal."""
    one = frozen(FITS)
    one.refuse("`images vet` found that UUIDs: both have 1")
    with pytest.raises(EphemeralError, match="UUIDs: both have 1"):
        one.require_usable()


def test_freezing_requires_enough_disk_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written, and the message has the needed and the free space."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Space(0, 0, 100 << 20))
    one = Memory.of(FITS)
    with (
        pytest.raises(EphemeralError, match=r"no space for 512 MiB .* 100 MiB are free"),
        one.make(512 << 20),
    ):
        pytest.fail("it was begun")
    assert [path.name for path in one.folder.parent.iterdir()] == []


def test_freezing_removes_old_unused_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that was resumed recently stays."""
    old, recent = frozen(FITS), frozen({**FITS, "machine": "pc"})
    os.utime(old.folder, (0, 0))
    monkeypatch.setattr(programs, "create_overlay", lambda *_: None)
    with Memory.of({**FITS, "machine": "new"}).make(1):
        pass
    assert not old.exists()
    assert recent.exists()


def test_copying_memory_preserves_holes(tmp_path: Path) -> None:
    """A machine's memory is mostly holes. Its data is copied byte for byte."""
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"in the middle")
    memory._copy_sparse(source, tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_blocks * 512 < 1 << 20
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
