"""Archives in layers: the store has a shared layer once, and removes it with its last archive."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import threading
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from pytest_ephemeral import files
from pytest_ephemeral.ci import VENDORS
from pytest_ephemeral.errors import ImageChangedError, RecordMissingError, StoreError
from pytest_ephemeral.images import layers as module
from pytest_ephemeral.images.archives import Archives
from pytest_ephemeral.images.layers import Layers
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers.docker.archive import find_layers
from pytest_ephemeral.store.directory import DirectoryStore
from pytest_ephemeral.tables import KeepInStore

BASE = random.Random(1).randbytes(5 << 20) + bytes(3 << 20)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DirectoryStore:
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))
    return DirectoryStore(tmp_path / "store")


def archive_of(folder: Path, name: str, *contents: bytes) -> tuple[str, Path]:
    """Write an archive as a container engine does; returns its digest and its path."""
    file = folder / name
    with tarfile.open(file, "w") as tar:
        for at, content in enumerate((*contents, name.encode())):
            member = tarfile.TarInfo(f"{at}/layer.tar")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return files.digest_of(files.chunks(file)), file


def add(store: DirectoryStore, folder: Path, name: str, *contents: bytes) -> str:
    digest, file = archive_of(folder, name, *contents)
    Layers(store).add(name, digest, file, find_layers(file))
    return digest


def layers_in(store: DirectoryStore) -> set[str]:
    return set(store.paths("layers"))


def test_a_shared_layer_is_stored_once(store: DirectoryStore, tmp_path: Path) -> None:
    """Layers are compressed, and each archive is restored byte for byte."""
    own = [random.Random(seed).randbytes(20_000) for seed in (2, 3)]
    digests = [add(store, tmp_path, f"image{at}", BASE, own[at], BASE) for at in (0, 1)]
    assert len(layers_in(store)) == 3
    stored = sum(file.stat().st_size for file in store.folder.rglob("*") if file.is_file())
    assert stored < 6 << 20  # of 32 MB
    for at, digest in enumerate(digests):
        Layers(store).write(digest, tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == (tmp_path / f"image{at}").read_bytes()


def test_an_existing_layer_is_not_written_again(
    store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not even compressed again."""
    add(store, tmp_path, "first", BASE)
    monkeypatch.setattr(module, "_in_parallel", None)
    add(store, tmp_path, "second", BASE)


def test_layers_are_removed_with_their_last_archive(store: DirectoryStore, tmp_path: Path) -> None:
    """If a record can't be read, no layer is removed."""
    first = add(store, tmp_path, "first", BASE, b"1" * 9000)
    second = add(store, tmp_path, "second", BASE, b"2" * 9000)
    Layers(store).remove("first", first)
    assert Layers(store).has(second)
    assert not Layers(store).has(first)
    assert len(layers_in(store)) == 2
    store.create("images/odd.json", b"{")
    Layers(store).remove("second", second)
    assert len(layers_in(store)) == 2
    store.delete("images/odd.json")
    third = add(store, tmp_path, "third", BASE, b"2" * 9000)
    Layers(store).remove("third", third)
    assert layers_in(store) == set()


def test_an_archive_with_missing_layers_counts_as_missing(
    store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed upload, it can't be restored; adding it again completes it."""
    with monkeypatch.context() as patch:
        patch.setattr(DirectoryStore, "upload", _fail)
        with pytest.raises(StoreError):
            add(store, tmp_path, "first", BASE)
    digest, _ = archive_of(tmp_path, "first", BASE)
    assert not Layers(store).has(digest)
    with pytest.raises(RecordMissingError):
        Layers(store).write(digest, tmp_path / "again")
    assert Layers(store).has(add(store, tmp_path, "first", BASE))


def test_adding_waits_for_a_concurrent_layer_removal(
    store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remover has found that no other archive has the layer, but has not deleted it yet."""
    old = add(store, tmp_path, "old", BASE)
    deciding, told = threading.Event(), threading.Event()
    needed = Layers._needed

    def slow(self: Layers, found: list[str]) -> set[str]:
        answer = needed(self, found)
        deciding.set()
        told.wait(20)
        return answer

    monkeypatch.setattr(Layers, "_needed", slow)
    remover = threading.Thread(target=Layers(store).remove, args=("old", old))
    remover.start()
    assert deciding.wait(20)
    monkeypatch.setattr(module, "_say_nothing", lambda line: told.set())  # when it waits
    new = add(store, tmp_path, "new", BASE)
    remover.join()
    assert told.is_set()
    assert Layers(store).has(new)


def test_a_changed_layer_is_refused(store: DirectoryStore, tmp_path: Path) -> None:
    """The stored layer is truncated, is not a gzip file, or has other content."""
    digest = add(store, tmp_path, "first", BASE)
    (layer,) = layers_in(store)
    content = store.file(layer).read_bytes()
    for wrong in (content[: len(content) // 2], b"poison", gzip.compress(b"another")):
        store.file(layer).write_bytes(wrong)
        with pytest.raises(ImageChangedError, match="is not what was put there"):
            Layers(store).write(digest, tmp_path / "again")


@pytest.mark.parametrize(
    ("keep", "where", "ci", "handle", "wanted"),
    [
        ("auto", "project/.ephemeral", "", {}, False),
        ("auto", "project/.ephemeral", "true", {}, True),
        ("auto", "shared", "", {}, True),
        ("auto", "shared", "true", {"pull": "registry.example/shop@sha256:0"}, False),
        ("always", "project/.ephemeral", "", {"pull": "registry.example/shop@sha256:0"}, True),
        ("never", "shared", "true", {}, False),
    ],
)
def test_the_keep_setting_decides_which_images_are_stored(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keep: KeepInStore,
    where: str,
    ci: str,
    handle: dict[str, str],
    wanted: bool,
) -> None:
    """``auto`` stores images that other engines may need. A referenced image is never stored."""
    for variable in ("BUILD_NUMBER", *(vendor.marker for vendor in VENDORS.values())):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CI", ci)
    archives = Archives(DirectoryStore(tmp_path / where), tmp_path / "project", keep)
    key = "sha256:" + "0" * 64
    made = {"name": "shop", "key": key, "reference": key, "digest": key, "handle": handle}
    image = Image(provider="docker", baked_at=datetime.now(UTC), **made)  # type: ignore[arg-type]
    assert archives.is_wanted(image) is wanted
    local = msgspec.structs.replace(image, provider="local", handle={})
    assert archives.is_wanted(local) is (keep != "never")
    assert not archives.is_wanted(msgspec.structs.replace(image, inputs={"reference": "x"}))


def _fail(*arguments: object) -> None:
    raise StoreError("no room")
