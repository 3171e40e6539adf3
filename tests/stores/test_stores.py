"""Tests that stores of every kind must pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_ephemeral.errors import (
    RecordConflictError,
    RecordExistsError,
    RecordMissingError,
    StoreError,
)
from pytest_ephemeral.store import open_store
from support import victims

PROCESSES = 4
MEBIBYTE = 1 << 20


def test_a_record_is_read_as_it_was_created(store):
    """Reading returns the created content and its version."""
    version = store.create("environments/a.json", b"one")
    assert store.read("environments/a.json") == (b"one", version)
    assert store.has("environments/a.json")


def test_a_record_is_created_once(store):
    """The second create fails, and the first record stays."""
    store.create("a", b"one")
    with pytest.raises(RecordExistsError, match="already"):
        store.create("a", b"two")
    with pytest.raises(RecordExistsError, match="already"):
        store.create("a", b"one")
    assert store.read("a").data == b"one"


def test_replace_requires_the_current_version(store):
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


def test_deleting_a_missing_record_is_harmless(store):
    """This also holds in a store that was never written to."""
    store.delete("never/was")


@pytest.mark.parametrize("path", ["a", "folder", "folder/xy"])
def test_folders_and_name_prefixes_are_not_records(store, path):
    """Neither a folder nor a prefix of a name is found."""
    store.create("folder/xyz", b"")
    assert not store.has(path)
    with pytest.raises(RecordMissingError, match="has no"):
        store.read(path)


def test_paths_lists_the_records_of_a_folder(store):
    """Paths are sorted, from the folder and below, but not from one with a similar name."""
    for path in ("catalog/shop/2.json", "catalog/shop/1.json", "catalog/shop-x/1.json"):
        store.create(path, b"{}")
    assert list(store.paths("catalog/shop")) == ["catalog/shop/1.json", "catalog/shop/2.json"]
    assert list(store.paths("catalog/")) == sorted(
        ["catalog/shop/1.json", "catalog/shop/2.json", "catalog/shop-x/1.json"]
    )
    assert list(store.paths("nothing")) == []
    assert len(list(store.paths(""))) == 3


def test_records_returns_paths_with_contents(store, monkeypatch):
    """They are sorted by path; a record that is removed meanwhile is left out."""
    for number in range(40):
        store.create(f"many/{number:02}", str(number).encode())
    store.create("many-more/1", b"")
    paths = [f"many/{number:02}" for number in range(40)]
    assert list(store.records("many")) == [(path, str(int(path[5:])).encode()) for path in paths]
    monkeypatch.setattr(store, "paths", lambda prefix: iter(paths))
    store.delete("many/07")
    assert [path for path, _ in store.records("many")] == [*paths[:7], *paths[8:]]


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "", "a//b", ".lock", "a\\b"])
def test_paths_outside_the_store_are_refused(store, path):
    """Names that the store itself needs are refused too."""
    for act in (store.read, store.has, store.delete, lambda path: store.create(path, b"")):
        with pytest.raises(StoreError, match="can't be a path"):
            act(path)


@pytest.mark.parametrize("size", [0, 3, 20 * MEBIBYTE], ids=["nothing", "small", "in parts"])
def test_an_uploaded_blob_is_never_overwritten(store, tmp_path, size):
    """Its bytes stay the same, and a second upload to its path changes nothing."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"0123456789abcdef" * (size // 16) + b"x" * (size % 16))
    second.write_bytes(b"other")
    store.upload("images/x", first)
    store.upload("images/x", second)
    store.download("images/x", tmp_path / "back" / "file")
    assert (tmp_path / "back" / "file").read_bytes() == first.read_bytes()
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["file"]


def test_downloading_a_missing_blob_leaves_no_file(store, tmp_path):
    """No partial file is left either."""
    with pytest.raises(RecordMissingError):
        store.download("images/y", tmp_path / "back" / "no")
    assert not list(tmp_path.glob("back/*"))


def test_the_url_opens_the_store_from_any_folder(store):
    """The watchdog opens the store by its URL alone."""
    store.create("a", b"one")
    again = open_store(store.url, Path("/"))
    assert again.url == store.url
    assert again.read("a") == store.read("a")


def test_concurrent_creates_of_a_record_succeed_once(store):
    """Several processes create ten records, each of which has one winner."""
    with victims.pool(PROCESSES) as pool:
        won = pool.map(_create_each, [store.url] * PROCESSES, chunksize=1)
    for number in range(10):
        winners = [process for process in won if number in process]
        assert len(winners) == 1


def test_concurrent_updates_are_not_lost(store):
    """Processes increment a counter by compare-and-swap, and every increment counts."""
    store.create("counter", b"0")
    with victims.pool(PROCESSES) as pool:
        pool.map(_count_to_10, [store.url] * PROCESSES, chunksize=1)
    assert store.read("counter").data == str(10 * PROCESSES).encode()


def _create_each(url: str) -> list[int]:
    """The numbers of the records, of ten, that this process has created."""
    store, won = open_store(url, Path("/")), []
    for number in range(10):
        try:
            store.create(f"the/{number}", b"same")
        except RecordExistsError:
            continue
        won.append(number)
    return won


def _count_to_10(url: str) -> None:
    store = open_store(url, Path("/"))
    for _ in range(10):
        while True:
            data, version = store.read("counter")
            try:
                store.replace("counter", str(int(data) + 1).encode(), version)
            except RecordConflictError:
                continue
            break
