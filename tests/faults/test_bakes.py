"""Concurrent and killed bakes: one process bakes, the others wait, and nothing is left."""

import multiprocessing
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from pytest_ephemeral import machine as this_machine
from pytest_ephemeral.errors import BakeError
from pytest_ephemeral.images import claim
from pytest_ephemeral.models import Image, encode
from pytest_ephemeral.providers.local import prefix
from pytest_ephemeral.store.directory import DirectoryStore
from support.machines import Machine, machine_in
from support.waiting import until

SPAWN = multiprocessing.get_context("spawn")
PATIENCE = 30.0


@pytest.fixture
def here(tmp_path) -> Iterator[Machine]:
    with machine_in(tmp_path / "project") as machine:
        yield machine


@pytest.fixture
def gate(tmp_path) -> Path:
    """A named pipe at which an install script waits until something is written to it."""
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "gate"


def waiting_install_script(gate: Path) -> list[str]:
    """An install script that starts a daemon, writes its process IDs, and waits at the gate."""
    lines = [
        f"setsid sleep 1000 & echo $! > {gate}.daemon",
        f"echo $$ > {gate}.new; mv {gate}.new {gate}.script; [ -e {gate}.open ] || read x < {gate}",
        'echo content > "$PREFIX/content"',
    ]
    return ["\n".join(lines)]


def obtains(folder: Path, install: list[str], store: str, said: "multiprocessing.Queue") -> None:
    """Obtain the image, and send messages and the result; this runs in another process."""
    machine = Machine(folder, store=store)
    recipe = machine.recipe(install=install)
    try:
        image = machine.images.obtain(recipe, mode="missing", say=said.put)
    except BakeError as error:
        said.put(error)
    else:
        said.put(image)


class Baker:
    """Another process that obtains an image."""

    def __init__(self, folder: Path, install: list[str], store: str = "store") -> None:
        self.messages = SPAWN.Queue()
        arguments = (folder, install, store, self.messages)
        # A daemon: it ends with this worker if the test fails while it waits.
        self.process = SPAWN.Process(target=obtains, args=arguments, daemon=True)
        self.process.start()

    def says(self) -> str:
        said = self.messages.get(timeout=PATIENCE)
        assert isinstance(said, str), said
        return said

    def image(self) -> Image:
        while isinstance(said := self.messages.get(timeout=PATIENCE), str):
            pass
        self.process.join()
        assert isinstance(said, Image), said
        return said


def alive(pid_file: Path) -> bool:
    return bool(this_machine.read_process_start(int(pid_file.read_text())))


@pytest.mark.parametrize("store", ["store", "another"])
def test_concurrent_bakes_of_a_key_bake_once(here, gate, store):
    """The second process names the first one and takes its image, with one store or with two."""
    install = waiting_install_script(gate)
    first = Baker(here.folder, install)
    assert first.says().startswith("baking shop")
    until(Path(f"{gate}.script").exists)
    second = Baker(here.folder, install, store)
    waiting = second.says()
    assert waiting.startswith("waiting for ")
    assert re.search(rf":{first.process.pid} (to bake shop|\(baking shop\)), \d+ s$", waiting)
    gate.write_text("go\n")
    ours, theirs = first.image(), second.image()
    assert theirs.digest == ours.digest
    assert (theirs == ours) == (store == "store")
    assert list(here.store.paths("bakes")) == []


def test_a_killed_bake_leaves_nothing(here, gate):
    """No process, tree or record is left, and the next bake starts at once."""
    install = waiting_install_script(gate)
    first = Baker(here.folder, install)
    until(Path(f"{gate}.script").exists)
    (here.folder / "root" / prefix_name(here, install) / "half").touch()
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.join()
    until(lambda: not alive(Path(f"{gate}.script")) and not alive(Path(f"{gate}.daemon")))
    until(lambda: not here.list_installed())
    assert here.images.catalog.entries() == []
    Path(f"{gate}.open").touch()
    started = time.monotonic()
    image = here.obtain(install=install)
    assert time.monotonic() - started < claim.SILENT_SECONDS / 2
    assert {path.name for path in Path(image.reference).iterdir()} == {"content"}
    assert list(here.store.paths("bakes")) == []


def prefix_name(here: Machine, install: list[str]) -> str:
    return here.images.key(here.recipe(install=install)).removeprefix("sha256:")[:24]


def test_the_next_bake_removes_incomplete_trees(here):
    """It removes a tree that is not verified, one being unpacked, and a working tree."""
    place = prefix.Prefix.of(here.images.key(here.recipe()))
    for folder in (place.tree, place.unpacking, place.work("1")):
        (folder / "read-only").mkdir(parents=True)
        (folder / "read-only" / "half").touch()
        (folder / "read-only").chmod(0o500)
    seal = prefix.Seal(key="", digest="", fingerprint="", size=0, links=[])
    place.write_seal(seal, verified=False)
    image = here.obtain()
    assert here.baked
    assert {path.name for path in Path(image.reference).iterdir()} == {"bin", "lib"}
    ours = {name.removeprefix(place.tree.name) for name in here.list_installed()}
    assert ours == {"", ".manifest", ".seal.json"}


def test_the_waiting_process_bakes_when_the_first_one_fails(here, gate):
    """A failed bake is not shared with the waiting process."""
    install = [*waiting_install_script(gate), f"[ -e {gate}.works ]"]
    first = Baker(here.folder, install)
    until(Path(f"{gate}.script").exists)
    second = Baker(here.folder, install)
    assert "waiting for" in second.says()
    Path(f"{gate}.open").touch()
    gate.write_text("go\n")
    while isinstance(failed := first.messages.get(timeout=PATIENCE), str):
        pass
    first.process.join()
    assert isinstance(failed, BakeError)
    while isinstance(said := second.messages.get(timeout=PATIENCE), str):
        assert "shop" in said or said == "sealing it"
    second.process.join()
    assert isinstance(said, BakeError)
    Path(f"{gate}.works").touch()
    assert here.obtain(install=install).name == "shop"


# -- claims of dead processes and other machines -------------------------------------------


def create_claim(store: DirectoryStore, **changes: object) -> str:
    """Create a claim of another owner for the key ``sha256:abc``."""
    owner = msgspec.structs.replace(this_machine.this_owner("bake"), **changes)
    record = claim.BakeClaim(owner=owner, image="shop", since=datetime.now(UTC))
    return store.create("bakes/abc.json", encode(record))


@pytest.fixture
def store(tmp_path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def test_the_claim_of_a_dead_process_is_taken_over(store):
    """It is taken over at once, as the process was one of this machine."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    create_claim(store, pid=gone.pid)
    said: list[str] = []
    with claim.hold_claim(store, "sha256:abc", "shop", said.append):
        assert str(os.getpid()).encode() in store.read("bakes/abc.json").data
    assert said == []
    assert not store.has("bakes/abc.json")


def test_the_claim_of_a_silent_machine_is_taken_over(store, monkeypatch):
    """It is taken over after a period of silence, during which a message names its owner."""
    monkeypatch.setattr(claim, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(claim, "POLL_SECONDS", 0.01)
    create_claim(store, host="far-away", machine="far-away", user="anna", pid=12)
    said: list[str] = []
    started = time.monotonic()
    with claim.hold_claim(store, "sha256:abc", "shop", said.append):
        assert time.monotonic() - started >= 0.3
    assert said == ["waiting for anna@far-away:12 to bake shop, 0 s"]


def test_a_renewed_claim_is_respected(store, monkeypatch):
    """Its owner renews it as long as it bakes, and then removes it."""
    monkeypatch.setattr(claim, "RENEW_SECONDS", 0.01)
    with claim.hold_claim(store, "sha256:abc", "shop", print):
        first = store.read("bakes/abc.json").version
        until(lambda: store.read("bakes/abc.json").version != first)
    assert not store.has("bakes/abc.json")


def test_a_lost_claim_is_left_to_its_new_owner(store, monkeypatch):
    """The old owner neither renews nor removes the new owner's record."""
    monkeypatch.setattr(claim, "RENEW_SECONDS", 0.01)
    with claim.hold_claim(store, "sha256:abc", "shop", print):
        store.delete("bakes/abc.json")
        theirs = create_claim(store, machine="far-away")
    assert store.read("bakes/abc.json").version == theirs


def test_an_unreadable_claim_is_taken_over(store, monkeypatch):
    """A truncated claim is treated as that of a silent machine."""
    monkeypatch.setattr(claim, "SILENT_SECONDS", 0.05)
    monkeypatch.setattr(claim, "POLL_SECONDS", 0.01)
    store.create("bakes/abc.json", b"{")
    said: list[str] = []
    with claim.hold_claim(store, "sha256:abc", "shop", said.append):
        pass
    assert "can't be read" in said[0]
