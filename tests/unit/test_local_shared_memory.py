"""Shared memory that an environment leaves is removed with it, but no other."""

from __future__ import annotations

import mmap
import secrets
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_ephemeral.providers.local import LocalProvider
from pytest_ephemeral.providers.local.tables import LocalTemplate
from pytest_ephemeral.testing import make_order
from support.waiting import until

FOLDER = Path("/dev/shm")

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="of Linux")

#: Maps files, creates a System V segment, and then prints the segment's id.
PROGRAM = """
import ctypes, mmap, os, sys, time
maps = []
for name in sys.argv[1:]:
    file = os.open("/dev/shm/" + name, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(file, 4096)
    maps.append(mmap.mmap(file, 4096))
print("segment", ctypes.CDLL(None).shmget(0, 4096, 0o1600), flush=True)
time.sleep(1000)
"""


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Unique names of files: an existing one, one to share with this process, and another."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))
    made = [f"ephemeral-test-{secrets.token_hex(4)}-{kind}" for kind in ("old", "shared", "own")]
    (FOLDER / made[0]).write_bytes(b"\0" * 4096)
    yield made
    for name in made:
        (FOLDER / name).unlink(missing_ok=True)


def segments() -> set[str]:
    """The ids of all System V segments, from the kernel's list."""
    rows = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return {row.split()[1] for row in rows}


def test_only_shared_memory_of_the_environment_is_removed(names: list[str]) -> None:
    """Files that existed before stay even if changed; so do those that others have mapped."""
    provider = LocalProvider()
    command = f"exec {shlex.join([sys.executable, '-c', PROGRAM, *names])}"
    order = make_order(LocalTemplate(name="shm", command=command, port=18480), None)
    environment = provider.launch(order)
    try:
        segment = until(lambda: provider.logs(environment)).split()[1]
        assert segment in segments()
        with (FOLDER / names[1]).open("r+b") as file, mmap.mmap(file.fileno(), 4096):
            provider.destroy(environment)
            assert (FOLDER / names[1]).exists(), "this process has it"
    finally:
        provider.destroy(environment)
    assert not (FOLDER / names[2]).exists()
    assert segment not in segments()
    assert (FOLDER / names[0]).exists(), "it was there before"
