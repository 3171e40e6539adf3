"""Installed trees: they are sealed, compared byte for byte, packed and unpacked."""

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
    """Content, kinds, modes, links and odd names are kept. Another packing is identical."""
    tree.seal(installed)
    archive.pack(installed, tmp_path / "archive")
    archive.unpack(tmp_path / "archive", tmp_path / "back", size=1 << 20)
    assert tree.manifest(tmp_path / "back") == tree.manifest(installed)
    assert os.readlink(tmp_path / "back/lib/same") == "./deep/"  # noqa: PTH115 - as it is
    for folder in (tmp_path / "back", tmp_path / "back" / "lib"):
        os.utime(folder, (1, 1))  # times of folders are not part of an image
    archive.pack(tmp_path / "back", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "archive").read_bytes()


def test_packing_preserves_modification_times(installed, tmp_path):
    """Python's bytecode files have the modification times of their sources."""
    os.utime(installed / "lib/data", (1_000_000_000, 1_000_000_000))
    archive.pack(installed, tmp_path / "archive")
    archive.unpack(tmp_path / "archive", tmp_path / "back", size=1 << 20)
    assert (tmp_path / "back/lib/data").stat().st_mtime == 1_000_000_000


def test_a_sealed_tree_has_no_write_permission(installed):
    """Executable files stay executable."""
    tree.seal(installed)
    modes = {p: s.st_mode for p, s in tree.walk(installed) if not stat.S_ISLNK(s.st_mode)}
    assert not [path for path, mode in modes.items() if mode & 0o222]
    assert stat.S_IMODE(modes["bin/shop"]) == 0o555
    assert stat.S_IMODE(modes["lib/data"]) == 0o444
    assert not installed.stat().st_mode & 0o222


def test_sealing_copies_hard_linked_files(installed, tmp_path):
    """Changes in an installer's cache then can't affect the tree; its permissions stay."""
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
    """A tree may have only files, folders and symbolic links."""
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(installed, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/socket")  # a socket's path must be short
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
    """Digest and fingerprint change, and ``changes`` names the path."""
    before, print_before = tree.manifest(installed), tree.fingerprint(installed)
    change(installed)
    after = tree.manifest(installed)
    assert tree.digest(after) != tree.digest(before)
    assert tree.fingerprint(installed) != print_before
    assert named in tree.changes(before, after)


def test_modification_times_do_not_affect_the_digest(installed):
    """They change only the fingerprint."""
    before, print_before = digest(installed), tree.fingerprint(installed)
    os.utime(installed / "lib/data", (0, 0))
    assert digest(installed) == before
    assert tree.fingerprint(installed) != print_before


def test_the_fingerprint_detects_a_hidden_byte_change(installed):
    """No program can set the change time (ctime) of a file."""
    file = installed / "lib/data"
    before, status = tree.fingerprint(installed), file.stat()
    content = file.read_bytes()
    file.write_bytes(b"\x01" + content[1:])
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    assert tree.fingerprint(installed) != before


def test_links_out_of_the_tree_are_found(installed):
    """Dangling links, and links within the tree, are not reported."""
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
    """These are paths outside of the target, and members that ``pack`` never writes."""
    file = archive_of(tmp_path / "archive", *members)
    with pytest.raises(tree.BadTreeError):
        archive.unpack(file, tmp_path / "top", size=1 << 20)
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "top"}


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_archive_is_refused(installed, tmp_path, damage):
    """It is empty, no archive, or truncated."""
    file = tmp_path / "archive"
    archive.pack(installed, file)
    file.write_bytes(file.read_bytes()[:-500] if damage is None else damage)
    with pytest.raises(tree.BadTreeError, match="can't be read"):
        archive.unpack(file, tmp_path / "top", size=1 << 20)


def test_remove_deletes_the_tree_and_is_idempotent(installed):
    """It also removes sealed trees, and does not follow links."""
    outside = installed.parent / "outside"
    outside.mkdir()
    (outside / "file").touch()
    (installed / "out").symlink_to(outside)
    tree.seal(installed)
    tree.remove(installed)
    tree.remove(installed)
    assert not installed.exists()
    assert (outside / "file").exists()
