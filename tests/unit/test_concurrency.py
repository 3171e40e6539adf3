"""Forced races: images, artifacts or processes change between two of our steps."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_ephemeral import machine
from pytest_ephemeral.artifacts import open_repository
from pytest_ephemeral.artifacts.repository import StoredRepository
from pytest_ephemeral.errors import ArtifactError, LaunchError
from pytest_ephemeral.images.pipeline import Images
from pytest_ephemeral.images.scratch import scratch_file
from pytest_ephemeral.providers.local import LocalProvider, provider
from pytest_ephemeral.providers.local.control_socket import GuardAddress
from pytest_ephemeral.providers.local.guard import Guard
from pytest_ephemeral.providers.local.prefix import Prefix, share
from pytest_ephemeral.publishers.outbox import Outbox
from pytest_ephemeral.store import open_store
from support.machines import INSTALL, RANDOM, Machine

WHEEL = "shop-1.4.2-py3-none-any.whl"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoredRepository:
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))
    return StoredRepository(open_store("repository", tmp_path))


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    file = tmp_path / WHEEL
    file.write_bytes(b"wheel")
    return file


# -- images --------------------------------------------------------------------------------------


def test_import_keeps_a_tree_that_is_in_use(here: Machine, tmp_path: Path) -> None:
    """The image is installed already, so its tree is not replaced."""
    artifacts = open_repository("artifacts", here.folder)
    images = Images(store=here.store, artifacts=artifacts, root=here.folder, keep="never")
    here.images = images
    image = here.obtain()
    images.export(image, tmp_path / "shop.image")
    tree = Path(image.reference)
    before = tree.stat().st_ino
    with open(share(Prefix(tree)), "rb"):  # noqa: PTH123 - a descriptor
        images.import_(tmp_path / "shop.image")
        assert tree.stat().st_ino == before


def test_launch_refuses_an_image_baked_again_meanwhile(here: Machine) -> None:
    """The evidence would name another digest than the one that runs."""
    old = here.obtain(install=RANDOM)
    new = here.obtain("always", install=RANDOM)
    with ExitStack() as held:
        assert provider._hold(new, held)
        with pytest.raises(LaunchError, match="baked again meanwhile"):
            provider._hold(old, held)


def test_late_verification_does_not_restore_an_old_record(
    here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image is baked again while it is verified: the catalog keeps the new record."""
    here.obtain(install=RANDOM)
    verify, baked = LocalProvider.verify, []

    def meanwhile(self: LocalProvider, job: Any, image: Any) -> None:
        monkeypatch.setattr(LocalProvider, "verify", verify)
        verify(self, job, image)
        baked.append(here.obtain("always", install=RANDOM))

    monkeypatch.setattr(LocalProvider, "verify", meanwhile)
    here.obtain(install=RANDOM, verify=["true"])
    (recorded,) = here.images.catalog.entries()
    assert [recorded.digest] == [image.digest for image in baked]


def test_refresh_does_not_restore_the_seal_of_a_replaced_tree(here: Machine) -> None:
    """A process that read the old seal must not write it into the new tree."""
    prefix = Prefix.at(here.obtain(install=RANDOM))
    old = prefix.read_seal()
    assert old is not None
    new = here.obtain("always", install=RANDOM)
    prefix.refresh(old)
    seal = prefix.read_seal()
    assert seal is not None
    assert seal.digest == new.digest != old.digest


def test_export_does_not_write_through_a_planted_link(here: Machine, tmp_path: Path) -> None:
    """The temporary file's name is random, so exports do not collide either."""
    image = here.obtain()
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / ".new-shop.image").symlink_to(precious)
    here.images.export(image, tmp_path / "shop.image")
    assert precious.read_text() == "mine"
    assert here.images.import_(tmp_path / "shop.image") == image


def test_scratch_files_of_another_container_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process ids mean nothing here; files of processes killed here are removed."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path))
    nobody = 4_194_300
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(os, "getpid", lambda: nobody)
        elsewhere.setattr(machine, "pid_namespace", lambda: "pid:[7]")
        theirs = scratch_file()
        other = theirs.__enter__()
    other.write_bytes(b"half")
    with monkeypatch.context() as killed:
        killed.setattr(os, "getpid", lambda: nobody)
        killed.setattr(machine, "read_process_start", lambda _: "100")
        left = scratch_file()
        own = left.__enter__()
    own.write_bytes(b"half")
    with scratch_file() as file:
        assert sorted(file.parent.iterdir()) == [other]
    theirs.__exit__(None, None, None)
    left.__exit__(None, None, None)


def test_prune_keeps_images_launched_meanwhile(
    here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image may be launched while earlier ones are removed, which can take minutes."""
    images = [here.obtain(install=[*INSTALL, f'echo {number} > "$PREFIX/n"']) for number in "123"]
    used: set[str] = set()
    remove = LocalProvider.remove

    def launched(self: LocalProvider, image: Any) -> None:
        used.update(one.key for one in images[:2] if one != image)
        remove(self, image)

    monkeypatch.setattr(LocalProvider, "remove", launched)
    (removed,) = here.images.prune(1, used)
    assert [removed, *here.images.catalog.entries()] == [images[1], images[0], images[2]]


# -- artifacts -----------------------------------------------------------------------------------


def test_push_stores_the_bytes_it_digested(
    repository: StoredRepository, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file may change between digest and upload, but the digested bytes are stored."""
    upload = repository._blobs.upload

    def meanwhile(path: str, source: Path) -> None:
        wheel.write_bytes(b"wheel of the next build")
        upload(path, source)

    monkeypatch.setattr(repository._blobs, "upload", meanwhile)
    assert repository.fetch(repository.push(wheel)).read_bytes() == b"wheel"


def test_a_bad_download_does_not_replace_a_good_copy(
    repository: StoredRepository, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may have downloaded a good copy at the same time."""
    artifact = repository.push(wheel)
    good = repository.fetch(artifact)
    good.unlink()

    def broken(path: str, destination: Path) -> None:
        good.write_bytes(b"wheel")  # simulates another process
        destination.write_bytes(b"whee")

    monkeypatch.setattr(repository._blobs, "download", broken)
    with pytest.raises(ArtifactError, match="no longer what was pushed"):
        repository.fetch(artifact)
    assert good.read_bytes() == b"wheel"
    assert [file.name for file in good.parent.iterdir()] == [WHEEL]


def test_a_copied_entry_is_refused(
    repository: StoredRepository, wheel: Path, tmp_path: Path
) -> None:
    """A copy of another version's entry does not create a new version."""
    repository.push(wheel)
    entries = tmp_path / "repository" / "entries" / "shop"
    shutil.copy(entries / "1.4.2.json", entries / "1.5.json")
    with pytest.raises(ArtifactError, match=r"1\.5\.json is the entry of shop@1\.4\.2"):
        repository.find("shop@1.5", tmp_path)


# -- processes -----------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")
def test_a_reused_process_group_gets_no_signal() -> None:
    """The guard's process has ended, and its id now belongs to another program."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from supervisor import groups; "
        "print(groups.signal_groups([int(sys.argv[2])], 15))"
    )
    folder = Path(provider.__file__).parent
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as victim:
        try:
            guard = [sys.executable, "-I", "-S", "-c", code, str(folder), str(victim.pid)]
            said = subprocess.run(guard, capture_output=True, text=True, check=True, timeout=60)
            assert said.stdout.strip() == "[]"
            with pytest.raises(subprocess.TimeoutExpired):
                victim.wait(0.05)
        finally:
            victim.kill()


def test_a_guard_with_remaining_processes_has_not_reported() -> None:
    """Its report lists processes that are left, so it does not count as ended."""
    process: Any = SimpleNamespace(pid=1)
    guard = Guard(GuardAddress("x", Path("/nowhere")), process)
    guard._report = b'{"remaining": [4711], "processes": [], "crash": ""}\n'
    assert not guard.has_reported
    guard._report = b'{"remaining": [], "processes": [], "crash": ""}\n'
    assert guard.has_reported


# -- messages ------------------------------------------------------------------------------------


def test_an_abandoned_message_is_not_sent_later() -> None:
    """At the deadline, queued messages are dropped; one in progress may still finish."""
    warned: list[str] = []
    outbox = Outbox("chat", warned.append)
    begun, go_on, sent = threading.Event(), threading.Event(), list[str]()

    def first(_: object) -> None:
        begun.set()
        go_on.wait(60)
        sent.append("first")

    outbox.put(first)
    outbox.put(lambda _: sent.append("second"))
    assert begun.wait(60)
    outbox.close(time.monotonic())
    go_on.set()
    assert outbox._thread is not None
    outbox._thread.join(60)
    assert sent == ["first"]
    assert warned == ["chat: gave up on 2 messages at the end of the run"]
