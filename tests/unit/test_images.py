"""Images: from a recipe to what was baked, on this machine and on another."""

import errno
import gzip
import os
import tarfile
from pathlib import Path

import msgspec
import pytest

from pytest_ephemeral.errors import (
    BakeError,
    ConfigurationError,
    ImageChangedError,
    ImageInUseError,
    ImageMissingError,
    NothingMatchedError,
    TamperedRecordError,
    UnavailableError,
)
from pytest_ephemeral.providers.local import archive, guard, mounts, prefix, tree
from pytest_ephemeral.providers.local.prefix import Prefix, share
from support.machines import INSTALL, Machine


def wheel(machine: Machine, content: bytes = b"wheel") -> None:
    dist = machine.folder / "dist"
    dist.mkdir(exist_ok=True)
    (dist / "shop-1.4.2-py3-none-any.whl").write_bytes(content)


# -- baking --------------------------------------------------------------------------------


def test_an_image_is_baked_once(here):
    """The same recipe gives the same image again, without a bake."""
    image = here.obtain(verify=['test "$("$PREFIX/bin/shop")" = shop'])
    assert here.baked
    assert here.obtain() == image
    assert here.messages == []
    assert here.images.catalog.entries() == [image]
    assert image.key == here.images.key(here.recipe())
    assert Path(image.reference, "lib/numbers").read_text().startswith("1\n2\n")
    assert image.size > 3000
    assert image.seconds > 0


def test_the_key_depends_on_the_inputs(here):
    """Install, artifact, parameters; neither the name nor what only checks the result."""
    wheel(here)
    keys = [
        here.images.key(here.recipe(**changed))
        for changed in (
            {},
            {"install": [*INSTALL, "true"]},
            {"artifact": "dist/*.whl"},
            {"pass_env": ["HOME"]},
        )
    ]
    assert len(set(keys)) == 4
    assert here.images.key(here.recipe(name="other", verify=["true"])) == keys[0]
    wheel(here, b"another")
    assert here.images.key(here.recipe(artifact="dist/*.whl")) not in keys


def test_install_script_content_is_part_of_the_key(here):
    """And is run whether or not it may be executed; it sees prefix, artifact and its own folder."""
    wheel(here)
    script = here.folder / "install.sh"
    script.write_text('pwd > "$PREFIX/pwd"; ls -A > "$PREFIX/ls"; cp "$ARTIFACT" "$PREFIX"\n')
    image = here.obtain(install="install.sh", artifact="dist/*.whl")
    content = Path(image.reference)
    assert (content / "shop-1.4.2-py3-none-any.whl").read_bytes() == b"wheel"
    assert (content / "ls").read_text() == ""
    assert not Path((content / "pwd").read_text().strip()).exists()
    assert image.artifact == image.inputs["artifact"]
    script.write_text("#!/bin/sh\n" + script.read_text())
    script.chmod(0o755)
    assert here.obtain(install="install.sh", artifact="dist/*.whl").key != image.key


def test_a_missing_install_script_is_a_configuration_error(here):
    """Naming it."""
    with pytest.raises(ConfigurationError, match=r"no\.sh"):
        here.obtain(install="no.sh")


def test_only_allowed_variables_reach_the_install_script(here, monkeypatch):
    """And those that the recipe passes, whose values no log shows."""
    monkeypatch.setenv("SHOP_TOKEN", "very-secret-token")
    monkeypatch.setenv("SHOP_OTHER", "other")
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "PIP_NO_INPUT"):
        monkeypatch.setenv(name, "1")
    install = ['env; env > $PREFIX/env; echo "<$SHOP_TOKEN>"']
    image = here.obtain(install=install, pass_env=["SHOP_TOKEN"])
    seen = Path(image.reference, "env").read_text()
    assert "SHOP_TOKEN=very-secret-token" in seen
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "PIP_NO_INPUT"):
        assert f"{name}=1" in seen
    assert "SHOP_OTHER" not in seen
    assert "<***>" in here.logs
    everywhere = here.logs + "".join(here.messages + here.output) + str(image)
    assert "very-secret-token" not in everywhere
    monkeypatch.delenv("SHOP_TOKEN")
    with pytest.raises(ConfigurationError, match="SHOP_TOKEN"):
        here.obtain("always", install=install, pass_env=["SHOP_TOKEN"])


def test_bake_output_is_logged_and_shown(here):
    """Each line with the seconds it took."""
    here.obtain(install=["echo one; echo two >&2; touch $PREFIX/x"])
    assert here.logs == "one\ntwo\n"
    assert [line.split(" s  ")[1] for line in here.output] == ["one", "two"]


def test_a_failing_install_script_leaves_nothing(here):
    """It is told with command, status, last lines and the log's path; then it can be mended."""
    install = ["touch $PREFIX/half; seq 100; echo no such thing >&2; exit 3"]
    with pytest.raises(BakeError, match=r"exited with 3(?s:.*)\n    100\n    no such") as caught:
        here.obtain(install=install)
    (log,) = (here.folder / "state" / "bakes").glob("*.log")
    assert str(log) in str(caught.value)
    assert "\n    1\n" not in str(caught.value)
    assert here.list_installed() == set()
    assert here.images.catalog.entries() == []
    assert list(here.store.paths("")) == []


def test_a_failing_verify_leaves_nothing(here):
    """What does not verify is no image."""
    with pytest.raises(
        BakeError, match=r"'shop' could not be baked: verifying failed: `false` exited with 1"
    ):
        here.obtain(verify=["true", "false"])
    assert here.list_installed() == set()
    assert here.images.catalog.entries() == []


def test_an_install_with_an_empty_prefix_fails(here):
    """It has most likely installed somewhere else."""
    with pytest.raises(BakeError, match="put nothing into"):
        here.obtain(install=["true"])
    assert here.list_installed() == set()


def test_an_interrupted_bake_leaves_nothing(here, monkeypatch):
    """Ctrl-C while it is sealed, say."""

    def interrupt(top):
        raise KeyboardInterrupt

    monkeypatch.setattr(tree, "seal", interrupt)
    with pytest.raises(KeyboardInterrupt):
        here.obtain()
    assert here.list_installed() == set()
    assert list(here.store.paths("")) == []


def test_a_full_disk_is_explained(here, monkeypatch):
    """And leaves nothing behind."""

    def fail(top, file):
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr(archive, "pack", fail)
    with pytest.raises(BakeError, match=r"No space left on device.*df -h"):
        here.obtain()
    assert here.list_installed() == set()
    assert list(here.store.paths("")) == []


def test_an_unwritable_state_folder_is_explained(here):
    """Its path is said."""
    (here.folder / "state").write_text("")
    with pytest.raises(BakeError, match=r"can't be baked.*state"):
        here.obtain()


def test_baking_again_replaces_the_record(here):
    """``always`` bakes anew under the same key; each time the catalog has one record."""
    first = here.obtain(install=["date +%N > $PREFIX/now"])
    second = here.obtain("always", install=["date +%N > $PREFIX/now"])
    assert here.baked
    assert second.key == first.key
    assert second.digest != first.digest
    assert here.images.catalog.entries() == [second]


def test_an_image_in_use_is_not_replaced(here, monkeypatch):
    """It is refused, and the image stays as it is."""
    image = here.obtain()
    monkeypatch.setattr(prefix, "_GRACE_SECONDS", 0.05)
    running = share(Prefix.at(image))
    try:
        with pytest.raises(ImageInUseError, match="an environment runs from"):
            here.obtain("always")
        assert here.images.prune(0, in_use=()) == []
    finally:
        os.close(running)
    assert here.obtain() == image
    assert here.obtain("always").key == image.key


def test_images_with_the_same_key_share_a_tree(here):
    """The second one is not baked; and removing either leaves the other."""
    first = here.obtain()
    second = here.obtain(name="shop-too")
    assert not here.baked
    assert (second.key, second.digest) == (first.key, first.digest)
    assert here.images.prune(1, in_use=()) == []
    here.images._remove(second)
    assert here.obtain() == first
    assert here.messages == []


def test_another_store_adopts_an_installed_tree(here):
    """One tree a machine; what another store's bake sealed is verified, and taken over."""
    image = here.obtain()
    other = Machine(here.folder, store="another")
    running = share(Prefix.at(image))  # it can be adopted while something runs from it
    try:
        adopted = other.obtain(verify=["$PREFIX/bin/shop"])
    finally:
        os.close(running)
    assert not other.baked
    assert "shop is on this machine already" in other.messages[0]
    assert adopted.digest == image.digest
    assert any("verifying" in line for line in other.messages)
    assert other.store.has(f"images/{adopted.archive.removeprefix('sha256:')}")


# -- never changed -------------------------------------------------------------------------


def test_an_environment_cant_change_its_image(here, tmp_path):
    """Not even as root, where the kernel lets us mount."""
    image = here.obtain()
    content = Path(image.reference)
    for attempt in ("touch $P/new", "rm -rf $P/lib", "chmod u+w $P && echo x >> $P/lib/numbers"):
        spec = guard.Spec(
            id="attempt",
            control=tmp_path,
            processes={"attempt": ["/bin/sh", "-c", attempt]},
            directory=tmp_path,
            variables={"P": str(content), "PATH": os.environ["PATH"]},
            logs=tmp_path / "logs",
            readonly=[content],
        )
        assert guard.run_to_end(spec) != 0
    assert here.obtain() == image


def test_a_verify_command_cant_change_the_image(here):
    """It is told that it may not."""
    with pytest.raises(BakeError, match="verifying"):
        here.obtain(verify=["touch $PREFIX/new"])


def test_a_changed_image_is_refused(here):
    """One byte, with size, time and mode put back: named, with the way out; and that works."""
    image = here.obtain()
    file = Path(image.reference, "lib/numbers")
    status, content = file.stat(), file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(b"7" + content[1:])
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    file.chmod(0o444)
    with pytest.raises(ImageChangedError, match=r"lib/numbers \(changed\).*bake shop --force"):
        here.obtain()
    assert here.obtain("always").digest == image.digest


def test_a_restored_image_is_recognised(here, monkeypatch):
    """Other inodes and times, the same content: looked into once, and known from then on."""
    image = here.obtain()
    content = Path(image.reference)
    archive.pack(content, here.folder / "backup")
    tree.remove(content)
    archive.unpack(here.folder / "backup", content, size=image.size)
    assert here.obtain() == image
    monkeypatch.setattr(tree, "manifest", lambda top: pytest.fail("looked into again"))
    assert here.obtain() == image


# -- on another machine --------------------------------------------------------------------


def test_another_machine_fetches_the_image_from_the_store(here):
    """The same bytes, without a bake; it is sealed there."""
    image = here.obtain()
    here.forget()
    assert here.obtain("never") == image
    assert here.messages == [f"fetching shop, baked by {image.baked_by}"]
    assert tree.digest(tree.manifest(Path(image.reference))) == image.digest
    assert here.obtain("never") == image
    assert here.messages == []


def test_mode_never_reports_the_missing_image(here):
    """It says what is missing, which input differs, and what to run."""
    wheel(here)
    with pytest.raises(
        ImageMissingError, match=r"No image of that name.*pytest-ephemeral bake shop"
    ):
        here.obtain("never", artifact="dist/*.whl")
    here.obtain(artifact="dist/*.whl")
    wheel(here, b"another")
    with pytest.raises(ImageMissingError, match=r"artifact: sha256:\w+… before, sha256:\w+… now"):
        here.obtain("never", artifact="dist/*.whl")


def test_an_image_without_content_is_baked_again(here):
    """Or, where that may not be, said to be lost."""
    image = here.obtain()
    here.forget()
    here.store.delete(f"images/{image.archive.removeprefix('sha256:')}")
    with pytest.raises(ImageMissingError, match="neither here nor in the store"):
        here.obtain("never")
    assert here.obtain().key == image.key
    assert here.baked


def test_a_changed_archive_is_refused(here):
    """Before anything of it is unpacked."""
    image = here.obtain()
    here.forget()
    blob = here.folder / "store/images" / image.archive.removeprefix("sha256:")
    blob.write_bytes(gzip.compress(b"poison"))
    with pytest.raises(ImageChangedError, match="archive of the image 'shop'"):
        here.obtain()
    assert here.list_installed() == set()


def test_an_archive_with_another_digest_is_refused(here):
    """One whose name is right, and whose content is not the image's."""
    image = here.obtain()
    here.images.catalog.record(msgspec.structs.replace(image, digest="sha256:" + "0" * 64))
    here.forget()
    with pytest.raises(ImageChangedError, match="is not sha256:000"):
        here.obtain()
    assert here.list_installed() == set()


def test_a_missing_interpreter_is_reported(here):
    """A link out of the tree that leads nowhere there is named."""
    interpreter = here.folder / "python3"
    interpreter.touch()
    here.obtain(install=[f"ln -s {interpreter} $PREFIX/python"])
    here.forget()
    interpreter.unlink()
    with pytest.raises(UnavailableError, match=r"needs .*python3, which this machine does not"):
        here.obtain(install=[f"ln -s {interpreter} $PREFIX/python"])


def test_a_newer_bake_replaces_the_older_tree(here):
    """When the catalog's image is another one than the tree under its key."""
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
    """One file, to a store that knows nothing of it."""
    image = here.obtain()
    here.images.export(image, here.folder / "shop.image")
    here.forget()
    other = Machine(here.folder, store="another")
    assert other.images.import_(here.folder / "shop.image") == image
    assert other.obtain("never") == image


def test_a_damaged_export_is_refused(here):
    """Whether it is something else, or its parts don't belong together."""
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
    """No folder, a folder in the file's place, lost content; nothing half-written stays."""
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


# -- the prefix root -----------------------------------------------------------------------


def test_a_world_writable_prefix_root_is_refused(here):
    """They could put trees of theirs in."""
    root = here.folder / "root"
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(ConfigurationError, match=r"is not safe.*ls -ld"):
        here.obtain()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_prefix_root_or_tree_of_another_user_is_refused(here):
    """Nor what another user put under root's sticky folder."""
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
    """Its paths would be wrong where nothing can be mounted: there, another one is baked."""
    image = here.obtain()
    monkeypatch.setenv("PYTEST_EPHEMERAL_PREFIX_ROOT", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(mounts, "refusal", lambda: "Operation not permitted")
    with pytest.raises(UnavailableError, match="PYTEST_EPHEMERAL_PREFIX_ROOT"):
        Prefix.at(image)
    other = here.obtain()
    assert other.key != image.key
    assert Path(other.reference).parent == tmp_path / "elsewhere"
    assert here.images.prune(0, in_use=()) == [other, image]  # of one, only the store's part
    assert Path(image.reference).exists()


def test_an_image_for_another_root_is_mounted_if_possible(here, monkeypatch, tmp_path):
    """By its digest, from the store; it is not baked again, and pruned like one's own."""
    image = here.obtain()
    monkeypatch.setenv("PYTEST_EPHEMERAL_PREFIX_ROOT", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(mounts, "refusal", lambda: "")
    assert here.obtain("never") == image
    copy = tmp_path / "elsewhere" / Path(image.reference).name
    assert copy.is_dir()
    assert here.images.prune(0, in_use=()) == [image]
    assert not copy.exists()


def test_a_damaged_image_of_another_root_is_baked_again(here, monkeypatch, tmp_path):
    """Its archive is not what its record says: that is told, and another one is baked."""
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
    """The first folder on the way is not there, or is the kernel's: "/" would be covered."""
    image = here.obtain()
    monkeypatch.setattr(mounts, "refusal", lambda: "")
    away = str(Path(root) / Path(image.reference).name)
    with pytest.raises(UnavailableError, match="can't be covered"):
        Prefix.at(msgspec.structs.replace(image, reference=away))


def test_a_forged_mount_location_is_refused(here, monkeypatch, tmp_path):
    """Only where a tree of that key is installed."""
    image = here.obtain()
    monkeypatch.setattr(mounts, "refusal", lambda: "")
    for place in ("/usr/bin", f"relative/{Path(image.reference).name}"):
        with pytest.raises(TamperedRecordError, match="damaged or forged"):
            Prefix.at(msgspec.structs.replace(image, reference=place))


# -- folders prepared elsewhere ------------------------------------------------------------


def test_a_referenced_folder_is_neither_sealed_nor_archived(here):
    """Neither sealed nor archived, but pinned."""
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
    """As a configuration error."""
    with pytest.raises(ConfigurationError, match=r"the folder .*nowhere does not exist"):
        here.obtain(install=None, reference="nowhere")
    (here.folder / "prepared").mkdir()
    with pytest.raises(ConfigurationError, match="remove install"):
        here.obtain(reference="prepared")


# -- the catalog ---------------------------------------------------------------------------


def test_images_are_found_by_name_and_by_key(here):
    """The newest of a name; a key's first digits; the closest name otherwise."""
    old = here.obtain()
    new = here.obtain(install=[*INSTALL, "true"])
    catalog = here.images.catalog
    assert catalog.get("shop") == new == catalog.latest("shop")
    assert catalog.get(old.key) == old
    assert catalog.get(old.key[7:17]) == old
    with pytest.raises(NothingMatchedError, match="Did you mean 'shop'"):
        catalog.get("shpo")
    assert catalog.latest("other") is None


def test_a_broken_catalog_record_is_skipped(here):
    """It is named, hides nothing else, and its image is baked again."""
    image = here.obtain()
    other = here.obtain(name="other", install=[*INSTALL, "true"])
    record = here.folder / f"store/catalog/shop/{image.key[7:]}.json"
    record.write_text('{"name": "sh')
    assert here.images.catalog.entries() == [other]
    assert list(here.images.catalog.broken) == [f"catalog/shop/{image.key[7:]}.json"]
    assert here.obtain().key == image.key
    assert len(here.images.catalog.entries()) == 2
    assert here.images.catalog.broken == {}


def test_prune_keeps_the_newest_and_used_images(here):
    """Content, archive and record of the others go."""
    images = [here.obtain(install=[*INSTALL, f": {n}"]) for n in range(4)]
    other = here.obtain(name="other", install=[*INSTALL, ": other"])
    removed = here.images.prune(1, in_use={images[1].key})
    assert removed == [images[2], images[0]]
    assert here.images.catalog.entries() == [other, images[1], images[3]]
    assert not Path(images[0].reference).exists()
    assert Path(images[1].reference).exists()
    # The four differ in nothing but the comment: their archives are one if their times are.
    kept = {image.archive.removeprefix("sha256:") for image in (other, images[1], images[3])}
    assert {path.name for path in (here.folder / "store/images").iterdir()} == kept
