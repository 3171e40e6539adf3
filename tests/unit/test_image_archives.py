"""Images are archived, fetched on another machine, exported and imported."""

import gzip
import tarfile
from pathlib import Path

import msgspec
import pytest

from pytest_ephemeral.errors import (
    ConfigurationError,
    ImageChangedError,
    ImageMissingError,
    UnavailableError,
)
from pytest_ephemeral.providers.local import tree
from support.machines import Machine
from support.wheels import write_wheel

# -- on another machine --------------------------------------------------------------------


def test_another_machine_fetches_the_image_from_the_store(here):
    """The tree has the same digest, and is not baked again."""
    image = here.obtain()
    here.forget()
    assert here.obtain("never") == image
    assert here.messages == [f"fetching shop, baked by {image.baked_by}"]
    assert tree.digest(tree.manifest(Path(image.reference))) == image.digest
    assert here.obtain("never") == image
    assert here.messages == []


def test_mode_never_reports_the_missing_image(here):
    """The error has the input that differs, and the command to run."""
    write_wheel(here)
    with pytest.raises(
        ImageMissingError, match=r"No image of that name.*pytest-ephemeral bake shop"
    ):
        here.obtain("never", artifact="dist/*.whl")
    here.obtain(artifact="dist/*.whl")
    write_wheel(here, b"another")
    with pytest.raises(ImageMissingError, match=r"artifact: sha256:\w+… before, sha256:\w+… now"):
        here.obtain("never", artifact="dist/*.whl")


def test_an_image_without_content_is_baked_again(here):
    """In mode ``never``, which forbids a bake, the error says that it is lost."""
    image = here.obtain()
    here.forget()
    here.store.delete(f"images/{image.archive.removeprefix('sha256:')}")
    with pytest.raises(ImageMissingError, match="neither here nor in the store"):
        here.obtain("never")
    assert here.obtain().key == image.key
    assert here.baked


def test_a_changed_archive_is_refused(here):
    """It is refused before any file is unpacked."""
    image = here.obtain()
    here.forget()
    blob = here.folder / "store/images" / image.archive.removeprefix("sha256:")
    blob.write_bytes(gzip.compress(b"poison"))
    with pytest.raises(ImageChangedError, match="archive of the image 'shop'"):
        here.obtain()
    assert here.list_installed() == set()


def test_an_archive_with_another_digest_is_refused(here):
    """The archive has the recorded name, but not the recorded content."""
    image = here.obtain()
    here.images.catalog.record(msgspec.structs.replace(image, digest="sha256:" + "0" * 64))
    here.forget()
    with pytest.raises(ImageChangedError, match="is not sha256:000"):
        here.obtain()
    assert here.list_installed() == set()


def test_a_missing_interpreter_is_reported(here):
    """The error names a link to a file outside of the tree that does not exist here."""
    interpreter = here.folder / "python3"
    interpreter.touch()
    here.obtain(install=[f"ln -s {interpreter} $PREFIX/python"])
    here.forget()
    interpreter.unlink()
    with pytest.raises(UnavailableError, match=r"needs .*python3, which this machine does not"):
        here.obtain(install=[f"ln -s {interpreter} $PREFIX/python"])


def test_a_newer_bake_replaces_the_older_tree(here):
    """The installed tree has the same key as the catalog's image, but another digest."""
    install = ["date +%N > $PREFIX/now"]
    first = here.obtain(install=install)
    stale = here.folder / "stale"
    Path(here.folder / "root").rename(stale)
    second = here.obtain("always", install=install)
    here.forget()
    stale.rename(here.folder / "root")
    assert Path(first.reference, "now").exists()
    assert here.obtain(install=install) == second
    assert tree.digest(tree.manifest(Path(second.reference))) == second.digest


def test_export_and_import_transfer_an_image(here):
    """Another store needs nothing but the exported file."""
    image = here.obtain()
    here.images.export(image, here.folder / "shop.image")
    here.forget()
    other = Machine(here.folder, store="another")
    assert other.images.import_(here.folder / "shop.image") == image
    assert other.obtain("never") == image


def test_a_damaged_export_is_refused(here):
    """It is another file, or its record does not match its content."""
    image = here.obtain()
    file = here.folder / "shop.image"
    file.write_bytes(b"something else")
    with pytest.raises(ConfigurationError, match="images export"):
        here.images.import_(file)
    for unreadable in ("not-there", "."):
        with pytest.raises(ConfigurationError, match=r"can't be read: (No such file|Is a dir)"):
            here.images.import_(here.folder / unreadable)
    other = msgspec.structs.replace(image, inputs={**image.inputs, "install": "something else"})
    here.images.export(other, file)
    with pytest.raises(ImageChangedError, match="damaged"):
        here.images.import_(file)
    with tarfile.open(file) as tar:
        assert tar.getnames() == ["image.json", "content"]


def test_export_failures_are_explained(here):
    """The path is a folder or its folder is missing, or the content is lost."""
    image = here.obtain()
    for folder in (here.folder, Path(), Path(".."), Path("/")):
        with pytest.raises(ConfigurationError, match="it is a folder; name a file in it"):
            here.images.export(image, folder)
    with pytest.raises(ConfigurationError, match="can't be written"):
        here.images.export(image, here.folder / "no" / "shop.image")
    here.forget()
    here.store.delete(f"images/{image.archive.removeprefix('sha256:')}")
    with pytest.raises(ImageMissingError, match="neither here nor in the store"):
        here.images.export(image, here.folder / "shop.image")
    assert not (here.folder / "shop.image").exists()
