"""Images: from a recipe to a baked image, and the catalog."""

import errno
import os
from pathlib import Path

import pytest

from pytest_ephemeral.errors import (
    BakeError,
    ConfigurationError,
    ImageChangedError,
    ImageInUseError,
    NothingMatchedError,
)
from pytest_ephemeral.providers.local import archive, guard, prefix, tree
from pytest_ephemeral.providers.local.prefix import Prefix, share
from support.machines import INSTALL, Machine
from support.wheels import write_wheel

# -- baking --------------------------------------------------------------------------------


def test_an_image_is_baked_once(here):
    """The same recipe returns the same image without another bake."""
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
    """Script, artifact and variables count; the name and the verify commands do not."""
    write_wheel(here)
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
    write_wheel(here, b"another")
    assert here.images.key(here.recipe(artifact="dist/*.whl")) not in keys


def test_install_script_content_is_part_of_the_key(here):
    """A script runs without an executable bit, in an empty folder, with PREFIX and ARTIFACT."""
    write_wheel(here)
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
    """The error names the script."""
    with pytest.raises(ConfigurationError, match=r"no\.sh"):
        here.obtain(install="no.sh")


def test_only_allowed_variables_reach_the_install_script(here, monkeypatch):
    """Those in ``pass-env`` are allowed, too, but no log shows their values."""
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
    """On the console, each line starts with the elapsed seconds."""
    here.obtain(install=["echo one; echo two >&2; touch $PREFIX/x"])
    assert here.logs == "one\ntwo\n"
    assert [line.split(" s  ")[1] for line in here.output] == ["one", "two"]


def test_a_failing_install_script_leaves_nothing(here):
    """The error has the command, its exit status, its last lines and the log's path."""
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
    """An image that fails verification is not installed or recorded."""
    with pytest.raises(
        BakeError, match=r"'shop' could not be baked: verifying failed: `false` exited with 1"
    ):
        here.obtain(verify=["true", "false"])
    assert here.list_installed() == set()
    assert here.images.catalog.entries() == []


def test_an_install_with_an_empty_prefix_fails(here):
    """The script has most likely installed to another place."""
    with pytest.raises(BakeError, match="put nothing into"):
        here.obtain(install=["true"])
    assert here.list_installed() == set()


def test_an_interrupted_bake_leaves_nothing(here, monkeypatch):
    """Ctrl-C is pressed while the image is sealed."""

    def interrupt(top):
        raise KeyboardInterrupt

    monkeypatch.setattr(tree, "seal", interrupt)
    with pytest.raises(KeyboardInterrupt):
        here.obtain()
    assert here.list_installed() == set()
    assert list(here.store.paths("")) == []


def test_a_full_disk_is_explained(here, monkeypatch):
    """The error suggests ``df -h``, and nothing is left."""

    def fail(top, file):
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr(archive, "pack", fail)
    with pytest.raises(BakeError, match=r"No space left on device.*df -h"):
        here.obtain()
    assert here.list_installed() == set()
    assert list(here.store.paths("")) == []


def test_an_unwritable_state_folder_is_explained(here):
    """The error has the folder's path."""
    (here.folder / "state").write_text("")
    with pytest.raises(BakeError, match=r"can't be baked.*state"):
        here.obtain()


def test_baking_again_replaces_the_record(here):
    """Mode ``always`` bakes again; the catalog keeps one record for the key."""
    first = here.obtain(install=["date +%N > $PREFIX/now"])
    second = here.obtain("always", install=["date +%N > $PREFIX/now"])
    assert here.baked
    assert second.key == first.key
    assert second.digest != first.digest
    assert here.images.catalog.entries() == [second]


def test_an_image_in_use_is_not_replaced(here, monkeypatch):
    """The bake is refused, and the image stays unchanged."""
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
    """The second is not baked, and removing one keeps the other."""
    first = here.obtain()
    second = here.obtain(name="shop-too")
    assert not here.baked
    assert (second.key, second.digest) == (first.key, first.digest)
    assert here.images.prune(1, in_use=()) == []
    here.images._remove(second)
    assert here.obtain() == first
    assert here.messages == []


def test_another_store_adopts_an_installed_tree(here):
    """A machine has one tree for each key; it is verified and added to the other store."""
    image = here.obtain()
    other = Machine(here.folder, store="another")
    running = share(Prefix.at(image))  # it can be adopted while it is in use
    try:
        adopted = other.obtain(verify=["$PREFIX/bin/shop"])
    finally:
        os.close(running)
    assert not other.baked
    assert "shop is on this machine already" in other.messages[0]
    assert adopted.digest == image.digest
    assert any("verifying" in line for line in other.messages)
    assert other.store.has(f"images/{adopted.archive.removeprefix('sha256:')}")


# -- changed images ------------------------------------------------------------------------


def test_an_environment_cant_change_its_image(here, tmp_path):
    """This includes root, on kernels that allow us to mount."""
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
    """An attempt to write fails the bake."""
    with pytest.raises(BakeError, match="verifying"):
        here.obtain(verify=["touch $PREFIX/new"])


def test_a_changed_image_is_refused(here):
    """A changed byte is found even with the old size, time and mode; --force bakes again."""
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
    """Inodes and times differ, so its content is read once and then known."""
    image = here.obtain()
    content = Path(image.reference)
    archive.pack(content, here.folder / "backup")
    tree.remove(content)
    archive.unpack(here.folder / "backup", content, size=image.size)
    assert here.obtain() == image
    monkeypatch.setattr(tree, "manifest", lambda top: pytest.fail("looked into again"))
    assert here.obtain() == image


# -- the catalog ---------------------------------------------------------------------------


def test_images_are_found_by_name_and_by_key(here):
    """A name finds the newest image; the start of a key finds its image."""
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
    """It is reported, other records stay valid, and its image is baked again."""
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
    """The trees, archives and records of the others are removed."""
    images = [here.obtain(install=[*INSTALL, f": {n}"]) for n in range(4)]
    other = here.obtain(name="other", install=[*INSTALL, ": other"])
    removed = here.images.prune(1, in_use={images[1].key})
    assert removed == [images[2], images[0]]
    assert here.images.catalog.entries() == [other, images[1], images[3]]
    assert not Path(images[0].reference).exists()
    assert Path(images[1].reference).exists()
    # The four differ only in a shell comment: with equal times, they share one archive.
    kept = {image.archive.removeprefix("sha256:") for image in (other, images[1], images[3])}
    assert {path.name for path in (here.folder / "store/images").iterdir()} == kept
