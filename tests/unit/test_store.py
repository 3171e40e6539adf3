"""The directory store: behaviour specific to files. Tests of all stores are in tests/stores."""

import errno
import os
from pathlib import Path

import pytest

from pytest_ephemeral import files
from pytest_ephemeral.errors import ConfigurationError, RecordMissingError, StoreError
from pytest_ephemeral.store import open_store
from pytest_ephemeral.store.directory import DirectoryStore


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def test_a_record_has_no_child_records(store):
    """A record is a file, not a folder."""
    store.create("a", b"")
    with pytest.raises(RecordMissingError, match="has no"):
        store.read("a/b")


def test_partially_written_records_are_not_listed(store):
    """They are in temporary files, which are skipped."""
    store.create("catalog/shop/1.json", b"{}")
    (store.folder / "catalog/shop" / f"{files.TEMPORARY}1234").write_bytes(b"{")
    assert list(store.paths("catalog")) == ["catalog/shop/1.json"]


@pytest.mark.parametrize("write", ["create", "upload"])
def test_old_temporary_files_are_removed(store, tmp_path, write):
    """The next write to the folder removes those older than a day; newer ones may be in use."""
    source = tmp_path / "source"
    source.write_bytes(b"x")
    (store.folder / "images").mkdir(parents=True)
    old, new = (store.folder / "images" / f"{files.TEMPORARY}{age}" for age in ("old", "new"))
    old.write_bytes(b"")
    new.write_bytes(b"")
    os.utime(old, (0, 0))
    if write == "create":
        store.create("images/x", b"x")
    else:
        store.upload("images/x", source)
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "permission denied")]
)
def test_write_failures_are_explained(store, monkeypatch, code, words):
    """The message has the reason and the path, and no partial file is left."""

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match=words) as caught:
        store.create("a/b", b"data")
    assert "a/b" in str(caught.value)
    assert list((store.folder / "a").iterdir()) == []


def test_a_file_in_place_of_the_store_folder_is_explained(tmp_path):
    """The store's folder can't be created, as the path is that of a file."""
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        DirectoryStore(tmp_path / "store").create("a", b"")


def test_unsupported_store_urls_are_refused(tmp_path):
    """The message names supported URLs. A relative folder is in the project's root."""
    assert open_store(".ephemeral", tmp_path).url == str(tmp_path / ".ephemeral")
    with pytest.raises(ConfigurationError, match=r"ftp://x.*s3://bucket/prefix"):
        open_store("ftp://x", tmp_path)
