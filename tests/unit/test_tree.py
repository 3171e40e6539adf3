"""Installed trees: told apart byte for byte, sealed, packed and unpacked."""

import io
import os
import socket
import stat
import tarfile
from pathlib import Path

import pytest

from pytest_ephemeral.providers.local import archive, tree

ODD_NAMES = ["two words", "line\nend", "\nfirst", "ünï", os.fsdecode(b"\xff\xfe"), "n" * 200]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    top = tmp_path / "installed"
    (top / "bin").mkdir(parents=True)
    (top / "lib" / "deep").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "bin" / "shop").write_text("#!/bin/sh\n")
    (top / "bin" / "shop").chmod(0o755)
    (top / "bin" / "python").symlink_to("/bin/sh")
    (top / "lib" / "same").symlink_to("./deep/")
    (top / "lib" / "data").write_bytes(bytes(range(256)) * 1000)
    for name in ODD_NAMES:
        (top / "lib" / "deep" / name).write_text(name, errors="surrogateescape")
    yield top
    for left in tmp_path.iterdir():
        tree.remove(left)


def digest(top: Path) -> str:
    return tree.digest(tree.manifest(top))


def test_a_tree_survives_packing_and_unpacking(installed, tmp_path):
    """Content, kinds, modes, links and odd names; and packed again it is the same archive."""
    tree.seal(installed)
    archive.pack(installed, tmp_path / "archive")
    archive.unpack(tmp_path / "archive", tmp_path / "back", size=1 << 20)
    assert tree.manifest(tmp_path / "back") == tree.manifest(installed)
    assert os.readlink(tmp_path / "back/lib/same") == "./deep/"  # noqa: PTH115 - as it is
    for folder in (tmp_path / "back", tmp_path / "back" / "lib"):
        os.utime(folder, (1, 1))  # when it came back is nothing of the image
    archive.pack(tmp_path / "back", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "archive").read_bytes()


def test_packing_preserves_modification_times(installed, tmp_path):
    """It names its source's modification time, so that is kept."""
    os.utime(installed / "lib/data", (1_000_000_000, 1_000_000_000))
    archive.pack(installed, tmp_path / "archive")
    archive.unpack(tmp_path / "archive", tmp_path / "back", size=1 << 20)
    assert (tmp_path / "back/lib/data").stat().st_mtime == 1_000_000_000


def test_a_sealed_tree_has_no_write_permission(installed):
    """Anywhere, and no file that may be executed loses that."""
    tree.seal(installed)
    modes = {p: s.st_mode for p, s in tree.walk(installed) if not stat.S_ISLNK(s.st_mode)}
    assert not [path for path, mode in modes.items() if mode & 0o222]
    assert stat.S_IMODE(modes["bin/shop"]) == 0o555
    assert stat.S_IMODE(modes["lib/data"]) == 0o444
    assert not installed.stat().st_mode & 0o222


def test_sealing_copies_hard_linked_files(installed, tmp_path):
    """An installer's cache can't change the tree, and keeps its own permissions."""
    cached = tmp_path / "cached"
    cached.write_text("cached")
    cached.chmod(0o644)
    os.link(cached, installed / "lib" / "linked")
    tree.seal(installed)
    before = digest(installed)
    cached.write_text("poison")
    assert digest(installed) == before
    assert stat.S_IMODE(cached.stat().st_mode) == 0o644


def test_sealing_refuses_sockets(installed):
    """A socket, say."""
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(installed, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/socket")  # paths of sockets are short
        os.close(here)
    with pytest.raises(tree.BadTreeError, match="socket is neither"):
        tree.seal(installed)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda top: (top / "lib/data").write_bytes(b"other"), "lib/data (changed)"),
        (lambda top: (top / "bin/shop").chmod(0o644), "bin/shop (changed)"),
        (lambda top: (top / "lib/same").unlink(), "lib/same (removed)"),
        (lambda top: (top / "empty/new").touch(), "empty/new (added)"),
        (lambda top: (top / "empty").rename(top / "full"), "empty (removed)"),
    ],
)
def test_every_change_is_detected(installed, change, named):
    """In the digest, in the fingerprint, and by name."""
    before, print_before = tree.manifest(installed), tree.fingerprint(installed)
    change(installed)
    after = tree.manifest(installed)
    assert tree.digest(after) != tree.digest(before)
    assert tree.fingerprint(installed) != print_before
    assert named in tree.changes(before, after)


def test_modification_times_do_not_affect_the_digest(installed):
    """A tree that is touched has another fingerprint and the same digest."""
    before, print_before = digest(installed), tree.fingerprint(installed)
    os.utime(installed / "lib/data", (0, 0))
    assert digest(installed) == before
    assert tree.fingerprint(installed) != print_before


def test_the_fingerprint_detects_a_hidden_byte_change(installed):
    """No program can set the change time back."""
    file = installed / "lib/data"
    before, status = tree.fingerprint(installed), file.stat()
    content = file.read_bytes()
    file.write_bytes(b"\x01" + content[1:])
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    assert tree.fingerprint(installed) != before


def test_links_out_of_the_tree_are_found(installed):
    """Those that are there; a relative one and a dangling one are no need of it."""
    (installed / "dangling").symlink_to("/nowhere/at/all")
    (installed / "own").symlink_to(installed / "bin/shop")
    assert tree.outside_links(installed) == ["bin/python -> /bin/sh"]


def archive_of(file: Path, *members: tuple[str, bytes, str]) -> Path:
    with tarfile.open(file, "w:gz") as tar:
        for name, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            tar.addfile(member, io.BytesIO())
    return file


@pytest.mark.parametrize(
    "members",
    [
        [("../outside", tarfile.REGTYPE, "")],
        [("/absolute", tarfile.REGTYPE, "")],
        [("no/folder/before", tarfile.REGTYPE, "")],
        [("link", tarfile.SYMTYPE, ".."), ("link/outside", tarfile.REGTYPE, "")],
        [("a", tarfile.DIRTYPE, ""), ("a/..", tarfile.DIRTYPE, "")],
        [("hard", tarfile.LNKTYPE, "/etc/passwd")],
        [("pipe", tarfile.FIFOTYPE, "")],
    ],
)
def test_unpack_refuses_unsafe_members(tmp_path, members):
    """Nor anything that ``pack`` never writes."""
    file = archive_of(tmp_path / "archive", *members)
    with pytest.raises(tree.BadTreeError):
        archive.unpack(file, tmp_path / "top", size=1 << 20)
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "top"}


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_archive_is_refused(installed, tmp_path, damage):
    """Empty, something else, or cut off."""
    file = tmp_path / "archive"
    archive.pack(installed, file)
    file.write_bytes(file.read_bytes()[:-500] if damage is None else damage)
    with pytest.raises(tree.BadTreeError, match="can't be read"):
        archive.unpack(file, tmp_path / "top", size=1 << 20)


def test_remove_deletes_the_tree_and_is_idempotent(installed):
    """Sealed or not, and links are not followed."""
    outside = installed.parent / "outside"
    outside.mkdir()
    (outside / "file").touch()
    (installed / "out").symlink_to(outside)
    tree.seal(installed)
    tree.remove(installed)
    tree.remove(installed)
    assert not installed.exists()
    assert (outside / "file").exists()
