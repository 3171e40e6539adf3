"""The directory store: atomic creation, compare-and-swap, and clear words when it can't."""

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from pytest_ephemeral import files
from pytest_ephemeral.errors import (
    ConfigurationError,
    RecordConflictError,
    RecordExistsError,
    RecordMissingError,
    StoreError,
)
from pytest_ephemeral.store import open_store
from pytest_ephemeral.store.directory import DirectoryStore

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def test_a_record_is_read_as_it_was_created(store):
    """Create, read and the version agree."""
    version = store.create("environments/a.json", b"one")
    assert store.read("environments/a.json") == (b"one", version)
    assert store.has("environments/a.json")


def test_a_record_is_created_once(store):
    """The second creator is told, and the first one's record stays."""
    store.create("a", b"one")
    with pytest.raises(RecordExistsError, match="already"):
        store.create("a", b"two")
    assert store.read("a").data == b"one"


def test_replacing_needs_the_version_that_was_read(store):
    """A record changed or removed meanwhile is a conflict, and is left as it is."""
    first = store.create("a", b"one")
    second = store.replace("a", b"two", first)
    with pytest.raises(RecordConflictError, match="changed"):
        store.replace("a", b"three", first)
    assert store.read("a") == (b"two", second)
    store.delete("a")
    with pytest.raises(RecordConflictError, match="removed"):
        store.replace("a", b"three", second)
    assert not store.has("a")


def test_deleting_what_is_gone_is_no_error(store):
    """Also in a store that was never written to."""
    store.delete("never/was")


@pytest.mark.parametrize("path", ["a", "a/b", "folder"])
def test_what_is_not_there_is_missing(store, path):
    """A folder is no record, nor is anything below a record."""
    store.create("folder/x", b"")
    if path == "a/b":
        store.create("a", b"")
    with pytest.raises(RecordMissingError, match="has no"):
        store.read(path)


def test_paths_are_those_of_whole_records(store):
    """Sorted, from the folder asked for and below; half-written ones are stepped over."""
    for path in ("catalog/shop/2.json", "catalog/shop/1.json", "catalog/shop-x/1.json"):
        store.create(path, b"{}")
    (store.folder / "catalog/shop" / f"{files.TEMPORARY}1234").write_bytes(b"{")
    assert list(store.paths("catalog/shop")) == ["catalog/shop/1.json", "catalog/shop/2.json"]
    assert list(store.paths("catalog/")) == sorted(
        ["catalog/shop/1.json", "catalog/shop/2.json", "catalog/shop-x/1.json"]
    )
    assert list(store.paths("nothing")) == []
    assert len(list(store.paths(""))) == 3


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "", "a//b", ".lock", "a\\b"])
def test_no_path_leads_out_of_the_store(store, path):
    """Nor to the names it needs itself."""
    with pytest.raises(StoreError, match="can't be a path"):
        store.create(path, b"")
    with pytest.raises(StoreError, match="can't be a path"):
        store.read(path)


def test_a_blob_comes_back_and_the_first_stays(store, tmp_path):
    """Uploading under a path that is taken changes nothing."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"x" * 3_000_000)
    second.write_bytes(b"other")
    store.upload("images/x", first)
    store.upload("images/x", second)
    store.download("images/x", tmp_path / "back" / "file")
    assert (tmp_path / "back" / "file").read_bytes() == first.read_bytes()
    with pytest.raises(RecordMissingError):
        store.download("images/y", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_what_a_killed_writer_left_is_swept(store, tmp_path):
    """A day later, by the next upload into the same folder; what is being written stays."""
    source = tmp_path / "source"
    source.write_bytes(b"x")
    (store.folder / "images").mkdir(parents=True)
    old, new = (store.folder / "images" / f"{files.TEMPORARY}{age}" for age in ("old", "new"))
    old.write_bytes(b"")
    new.write_bytes(b"")
    os.utime(old, (0, 0))
    store.upload("images/x", source)
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "this user may not")]
)
def test_a_store_that_cant_be_written_says_why(store, monkeypatch, code, words):
    """And leaves nothing half-written behind."""

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match=words) as caught:
        store.create("a/b", b"data")
    assert "a/b" in str(caught.value)
    assert list((store.folder / "a").iterdir()) == []


def test_a_file_in_the_way_is_explained(tmp_path):
    """A store's folder can't be made where a file stands."""
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        DirectoryStore(tmp_path / "store").create("a", b"")


def test_only_folders_are_stores_so_far(tmp_path):
    """Another kind of URL is a configuration error; a relative folder is under the root."""
    assert open_store(".ephemeral", tmp_path).url == str(tmp_path / ".ephemeral")
    with pytest.raises(ConfigurationError, match="ftp://x"):
        open_store("ftp://x", tmp_path)


def test_of_many_creators_one_wins(store):
    """Between processes."""
    with SPAWN.Pool(4) as pool:
        outcomes = pool.starmap(_creates, [(store.url, n) for n in range(16)])
    assert outcomes.count(True) == 1
    assert store.read("the/one").data == str(outcomes.index(True)).encode()


def test_no_update_is_lost(store):
    """Processes that count up by compare-and-swap count every step."""
    store.create("counter", b"0")
    with SPAWN.Pool(4) as pool:
        pool.map(_counts_to_25, [store.url] * 4)
    assert store.read("counter").data == b"100"


def _creates(url: str, number: int) -> bool:
    try:
        DirectoryStore(Path(url)).create("the/one", str(number).encode())
    except RecordExistsError:
        return False
    return True


def _counts_to_25(url: str) -> None:
    store = DirectoryStore(Path(url))
    for _ in range(25):
        while True:
            data, version = store.read("counter")
            try:
                store.replace("counter", str(int(data) + 1).encode(), version)
            except RecordConflictError:
                continue
            break
