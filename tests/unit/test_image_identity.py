"""An image is identified by its digest: records are checked, and a key only finds it."""

from __future__ import annotations

import gzip
import io
import json
import os
import stat
import tarfile
from pathlib import Path

import msgspec
import pytest

from pytest_ephemeral.errors import (
    ArtifactError,
    BakeError,
    ConfigurationError,
    ImageChangedError,
    ProvenanceError,
    StoreError,
)
from pytest_ephemeral.images import bundle
from pytest_ephemeral.images.pipeline import Images
from pytest_ephemeral.images.provenance import KEY_VARIABLE
from pytest_ephemeral.models import ImageReference, encode
from pytest_ephemeral.providers.local import archive, tree
from support import processes
from support.machines import RANDOM, Machine

# -- keys and digests --------------------------------------------------------------------------


def test_bakes_of_one_key_have_distinct_references(here: Machine) -> None:
    """Stages, approvals and promotions refer to one bake, not to its key."""
    first = here.obtain(install=RANDOM)
    second = here.obtain("always", install=RANDOM)

    assert first.key == second.key
    assert ImageReference.to(first) != ImageReference.to(second)


@pytest.mark.parametrize("key", ["sha256:../victim", "../victim", "sha256:" + "A" * 64, "sha256:"])
def test_prune_ignores_forged_keys(here: Machine, key: str) -> None:
    """A record forged in the store could name a folder that is not an image."""
    image = here.obtain()
    victim = here.folder / "root" / "victim"
    victim.mkdir()
    (victim / "precious").write_text("x")
    record = json.loads(encode(image)) | {"key": key, "reference": str(victim)}
    for path in (f"catalog/shop/{image.key[7:]}.json", "catalog/shop/victim.json"):
        here.store.delete(path)
        here.store.create(path, json.dumps(record).encode())

    assert here.images.prune(0, in_use=()) == []

    assert (victim / "precious").read_text() == "x"
    assert len(here.images.catalog.broken) == 2


def test_records_copied_to_another_path_are_ignored(here: Machine) -> None:
    """A record counts only at the path of its own name and key."""
    image = here.obtain()
    here.store.create(f"catalog/shop/{'ab' * 32}.json", encode(image))
    here.store.create(f"catalog/other/{image.key[7:]}.json", encode(image))

    assert here.images.catalog.entries() == [image]
    assert len(here.images.catalog.broken) == 2
    assert here.images.catalog.find("other", image.key) is None


def test_import_refuses_other_content_for_a_known_key(here: Machine) -> None:
    """A forged bundle with a valid key does not replace the existing record."""
    honest = here.obtain(install=RANDOM)
    here.obtain("always", install=RANDOM)
    forged = here.images.catalog.get("shop")
    here.images.export(forged, here.folder / "forged")
    here.images.catalog.record(honest)

    with pytest.raises(ImageChangedError, match="with other content"):
        here.images.import_(here.folder / "forged")

    assert here.images.catalog.get("shop") == honest


# -- signatures --------------------------------------------------------------------------------


def requiring(here: Machine, public: Path) -> Images:
    return Images(
        store=here.store,
        artifacts=here.images._artifacts,
        root=here.folder,
        require_signature=public,
    )


def test_unsigned_images_are_refused_if_signatures_are_required(
    here: Machine, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are neither launched nor promoted, and a changed record counts as unsigned."""
    images = requiring(here, keys[1])
    unsigned = here.obtain()
    with pytest.raises(ProvenanceError, match="is not signed"):
        images.obtain(here.recipe(), mode="missing", say=print)
    with pytest.raises(ProvenanceError, match="is not signed"):
        images.signatures.check_reference(ImageReference.to(unsigned))

    monkeypatch.setenv(KEY_VARIABLE, str(keys[0]))
    signed = here.obtain("always")
    assert images.obtain(here.recipe(), mode="never", say=print) == signed
    images.signatures.check_reference(ImageReference.to(signed))

    other_bytes = msgspec.structs.replace(ImageReference.to(signed), digest="sha256:" + "0" * 64)
    for reference in (other_bytes, None):
        with pytest.raises(ProvenanceError, match="require-signature"):
            images.signatures.check_reference(reference)
    here.images.catalog.record(msgspec.structs.replace(signed, baked_by="mallory@box"))
    with pytest.raises(ProvenanceError, match="bakedBy differs"):
        images.obtain(here.recipe(), mode="never", say=print)


# -- artifacts ---------------------------------------------------------------------------------


def test_fetch_returns_a_private_verified_copy(here: Machine, tmp_path: Path) -> None:
    """A file swapped in the repository after the check is never installed."""
    (here.folder / "dist").mkdir()
    (here.folder / "dist" / "shop-1.tar.gz").write_text("honest")
    artifact = here.images._artifacts.find("dist/shop-*.tar.gz", here.folder)

    fetched = here.images._artifacts.fetch(artifact)

    kept = next((here.folder / "artifacts").rglob("shop-1.tar.gz"))
    kept.unlink()
    kept.write_text("swapped")
    assert fetched.read_text() == "honest"
    assert not fetched.is_relative_to(here.folder / "artifacts")
    fetched.unlink()
    with pytest.raises(ArtifactError, match="no longer what was pushed"):
        here.images._artifacts.fetch(artifact)


# -- archives ----------------------------------------------------------------------------------


def test_unpack_refuses_archives_larger_than_the_image(tmp_path: Path) -> None:
    """A small archive can describe gigabytes; it is refused before any data is written."""
    file = tmp_path / "bomb"
    with gzip.open(file, "wb", 9) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo("zeros")
        member.size = 64 << 20
        tar.addfile(member, io.BytesIO(bytes(member.size)))

    with pytest.raises(tree.BadTreeError, match="more than the 1000 bytes"):
        archive.unpack(file, tmp_path / "tree", size=1000)

    assert sum(one.stat().st_blocks for one in (tmp_path / "tree").rglob("*")) == 0


def test_a_sparse_archive_is_refused(tmp_path: Path) -> None:
    """GNU tar can describe a hole of 3 GB in 10 KB."""
    hollow = tmp_path / "hollow"
    with hollow.open("wb") as stream:
        stream.truncate(3 << 30)
    plain = tmp_path / "plain.tar"
    processes.run("tar", "--sparse", "-cf", plain, "-C", tmp_path, "hollow")
    assert plain.stat().st_size < 20_000
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(plain.read_bytes()))

    with pytest.raises(tree.BadTreeError, match="more than"):
        archive.unpack(packed, tmp_path / "tree", size=4 << 30)

    assert not (tmp_path / "tree" / "hollow").exists()


def test_a_bundle_with_a_path_as_name_is_refused(here: Machine) -> None:
    """An image's name becomes part of a path."""
    image = here.obtain()
    here.images.export(image, here.folder / "file")
    record = json.loads(encode(image)) | {"name": "../../x"}
    with tarfile.open(here.folder / "file") as tar, tarfile.open(here.folder / "bad", "w") as bad:
        data = json.dumps(record).encode()
        member = tarfile.TarInfo("image.json")
        member.size = len(data)
        bad.addfile(member, io.BytesIO(data))
        bad.addfile(tar.getmember("content"), tar.extractfile("content"))

    with pytest.raises(ConfigurationError):
        bundle.read(here.folder / "bad", here.folder / "archive")


# -- files -------------------------------------------------------------------------------------


def test_bake_logs_are_private_to_the_user(here: Machine) -> None:
    """Install scripts may print tokens."""
    old = os.umask(0o022)
    try:
        here.obtain()
    finally:
        os.umask(old)
    modes = {
        stat.S_IMODE(file.stat().st_mode) for file in (here.folder / "state" / "bakes").iterdir()
    }
    assert modes == {0o600}


def test_a_fifo_in_the_store_does_not_block(here: Machine) -> None:
    """Any user with write access to the store can create one."""
    image = here.obtain()
    os.mkfifo(here.folder / "store" / "catalog" / "shop" / f"{'ab' * 32}.json")

    with pytest.raises(StoreError, match="not a regular file"):
        here.store.read(f"catalog/shop/{'ab' * 32}.json")
    assert here.images.catalog.entries() == [image]


def test_bake_failures_mask_index_and_proxy_passwords(
    here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip and curl print URLs; passwords are masked in the error, the log and the console."""
    monkeypatch.setenv("PIP_INDEX_URL", "https://anna:swordfish@index.example/simple")
    monkeypatch.setenv("https_proxy", "http://bob:tuna%20fish@proxy.example:3128")
    script = ['echo "looking in $PIP_INDEX_URL via $https_proxy"; echo "tuna fish"; exit 3']

    with pytest.raises(BakeError) as caught:
        here.obtain(install=script)

    for text in (str(caught.value), here.logs, "\n".join(here.output)):
        assert "swordfish" not in text
        assert "tuna" not in text
        assert "index.example/simple" in text
