"""Which prefix roots are trusted, and images that were baked for another one."""

import os
from pathlib import Path

import msgspec
import pytest

from pytest_ephemeral.errors import (
    ConfigurationError,
    ImageChangedError,
    ImageMissingError,
    TamperedRecordError,
    UnavailableError,
)
from pytest_ephemeral.providers.local import mounts
from pytest_ephemeral.providers.local.prefix import Prefix

# -- the prefix root -----------------------------------------------------------------------


def test_a_world_writable_prefix_root_is_refused(here):
    """Other users could replace trees in it."""
    root = here.folder / "root"
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(ConfigurationError, match=r"is not safe.*ls -ld"):
        here.obtain()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_prefix_root_or_tree_of_another_user_is_refused(here):
    """This includes another user's tree in a sticky folder of root."""
    root = here.folder / "root"
    root.mkdir()
    root.chmod(0o1777)
    image = here.obtain()
    os.chown(image.reference, 12345, 12345)
    with pytest.raises(ConfigurationError, match="put there by user 12345"):
        here.obtain()
    os.chown(root, 12345, 12345)
    with pytest.raises(ConfigurationError, match="belongs to user 12345"):
        here.obtain()


def test_an_image_for_another_root_is_baked_again_without_mounts(here, monkeypatch, tmp_path):
    """Its paths would be wrong without a mount, so another image is baked."""
    image = here.obtain()
    monkeypatch.setenv("PYTEST_EPHEMERAL_PREFIX_ROOT", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(mounts, "refusal", lambda: "Operation not permitted")
    with pytest.raises(UnavailableError, match="PYTEST_EPHEMERAL_PREFIX_ROOT"):
        Prefix.at(image)
    other = here.obtain()
    assert other.key != image.key
    assert Path(other.reference).parent == tmp_path / "elsewhere"
    assert here.images.prune(0, in_use=()) == [other, image]  # image: only what is in the store
    assert Path(image.reference).exists()


def test_an_image_for_another_root_is_mounted_if_possible(here, monkeypatch, tmp_path):
    """It is fetched from the store, not baked, and pruned like any other image."""
    image = here.obtain()
    monkeypatch.setenv("PYTEST_EPHEMERAL_PREFIX_ROOT", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(mounts, "refusal", lambda: "")
    assert here.obtain("never") == image
    copy = tmp_path / "elsewhere" / Path(image.reference).name
    assert copy.is_dir()
    assert here.images.prune(0, in_use=()) == [image]
    assert not copy.exists()


def test_a_damaged_image_of_another_root_is_baked_again(here, monkeypatch, tmp_path):
    """Its archive does not match its record: a message says so, and another one is baked."""
    image = here.obtain()
    archive = here.folder / "store" / "images" / image.archive.removeprefix("sha256:")
    archive.chmod(0o600)
    archive.write_bytes(b"damaged")
    monkeypatch.setenv("PYTEST_EPHEMERAL_PREFIX_ROOT", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(mounts, "refusal", lambda: "")
    assert here.obtain().key != image.key
    assert any("can't be used here" in line for line in here.messages)


@pytest.mark.parametrize("root", ["/", "/proc", "/nowhere"])
def test_mounts_that_would_hide_system_folders_are_refused(here, monkeypatch, root):
    """A mount there would cover "/" or a folder of the kernel."""
    image = here.obtain()
    monkeypatch.setattr(mounts, "refusal", lambda: "")
    away = str(Path(root) / Path(image.reference).name)
    with pytest.raises(UnavailableError, match="can't be covered"):
        Prefix.at(msgspec.structs.replace(image, reference=away))


def test_a_forged_mount_location_is_refused(here, monkeypatch, tmp_path):
    """A location is valid only if it is absolute and named after the image's key."""
    image = here.obtain()
    monkeypatch.setattr(mounts, "refusal", lambda: "")
    for place in ("/usr/bin", f"relative/{Path(image.reference).name}"):
        with pytest.raises(TamperedRecordError, match="damaged or forged"):
            Prefix.at(msgspec.structs.replace(image, reference=place))


# -- referenced folders --------------------------------------------------------------------


def test_a_referenced_folder_is_neither_sealed_nor_archived(here):
    """Its digest is recorded, so a later change is detected."""
    folder = here.folder / "prepared"
    folder.mkdir()
    (folder / "x").write_text("one")
    image = here.obtain(install=None, reference="prepared", verify=["test -f $PREFIX/x"])
    assert image.reference == str(folder)
    assert image.archive is None
    assert (folder / "x").stat().st_mode & 0o200
    assert here.obtain("never", install=None, reference="prepared") == image
    (folder / "x").write_text("two")
    with pytest.raises(ImageChangedError, match="has changed since"):
        here.images._plan(here.recipe()).baker.present(image)
    with pytest.raises(ImageMissingError, match="content: sha256"):
        here.obtain("never", install=None, reference="prepared")
    assert here.obtain(install=None, reference="prepared").key != image.key
    with pytest.raises(ConfigurationError, match="is a reference to"):
        here.images.export(image, here.folder / "file")
    here.images.prune(0, in_use=())
    assert (folder / "x").read_text() == "two"


def test_a_missing_or_combined_reference_is_refused(here):
    """The folder must exist, and ``reference`` excludes ``install``."""
    with pytest.raises(ConfigurationError, match=r"the folder .*nowhere does not exist"):
        here.obtain(install=None, reference="nowhere")
    (here.folder / "prepared").mkdir()
    with pytest.raises(ConfigurationError, match="remove install"):
        here.obtain(reference="prepared")
