"""Installed trees: seal them, and identify them by their content.

A tree's *manifest* has three fields for each entry: its kind and mode, its content (a digest, or a
link's target), and its path. Owners and times are not part of it. The tree's digest is the SHA-256
of the manifest. A tree's *fingerprint* is a digest of the ``lstat`` results of all entries. Writing
changes an entry's change time (ctime), which no program can set, so an equal fingerprint means that
nothing was changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import Final

from pytest_ephemeral import files

#: The permissions that a sealed entry may have.
SEALED: Final = 0o555
_WRITABLE_FOLDER: Final = 0o700


class BadTreeError(ValueError):
    """A tree or its archive is not valid for an image."""


def walk(top: Path) -> list[tuple[str, os.stat_result]]:
    """All entries below a folder: relative paths, sorted, folders before their content."""
    found: list[tuple[str, os.stat_result]] = []

    def look(folder: str, under: str) -> None:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                status = entry.stat(follow_symlinks=False)
                found.append((under + entry.name, status))
                if stat.S_ISDIR(status.st_mode):
                    look(entry.path, f"{under}{entry.name}/")

    look(str(top), "")
    return found


def seal(top: Path) -> None:
    """Remove all write permissions, and copy files that have hard links elsewhere.

    Some installers hard-link files from their caches: such a file could be changed there, and its
    permissions must not be changed by us.

    Raises:
        BadTreeError: It has entries other than files, folders and symbolic links.
    """
    for path, status in reversed(walk(top)):
        entry = top / path
        if stat.S_ISREG(status.st_mode):
            if status.st_nlink > 1:
                _make_own(entry, status.st_ino)
            entry.chmod(status.st_mode & SEALED)
        elif stat.S_ISDIR(status.st_mode):
            entry.chmod(status.st_mode & SEALED)
        elif not stat.S_ISLNK(status.st_mode):
            raise BadTreeError(f"{path} is neither a file nor a folder nor a symbolic link")
    top.chmod(SEALED)


def _make_own(file: Path, inode: int) -> None:
    copy = file.with_name(f"{files.TEMPORARY}{inode}")
    shutil.copy2(file, copy)
    copy.replace(file)


def manifest(top: Path) -> bytes:
    """The manifest of a tree; see the module."""
    return b"".join(_line(top, path, status) for path, status in walk(top))


def _line(top: Path, path: str, status: os.stat_result) -> bytes:
    mode = stat.S_IMODE(status.st_mode) & SEALED
    if stat.S_ISLNK(status.st_mode):
        fields = "l", target(top, path)
    elif stat.S_ISDIR(status.st_mode):
        fields = f"d{mode:o}", ""
    else:
        with (top / path).open("rb") as file:
            fields = f"f{mode:o}", hashlib.file_digest(file, "sha256").hexdigest()
    # Separated by NUL, the only byte that a path or a target can't have.
    return os.fsencode("\0".join((*fields, path, "")))


def target(top: Path, path: str) -> str:
    """The target of a symbolic link in a tree, unchanged."""
    return os.readlink(top / path)  # noqa: PTH115 - a Path would drop "./" and a last slash


def digest(manifest: bytes) -> str:
    """The tree's digest, ``sha256:…``, from its manifest."""
    return files.digest_of([manifest])


def require(manifest: bytes, expected: str) -> None:
    """Check a tree's digest.

    Raises:
        BadTreeError: It has another digest.
    """
    if (found := digest(manifest)) != expected:
        raise BadTreeError(f"what is in it is {found}")


def size(top: Path) -> int:
    """The total size of a tree's files in bytes."""
    return sum(status.st_size for _, status in walk(top) if stat.S_ISREG(status.st_mode))


def changes(before: bytes, after: bytes) -> list[str]:
    """The paths that differ between two manifests, sorted, each with the kind of its change."""
    old, new = _by_path(before), _by_path(after)
    found = [f"{path} (removed)" for path in old.keys() - new.keys()]
    found += [f"{path} (added)" for path in new.keys() - old.keys()]
    found += [f"{path} (changed)" for path in old.keys() & new.keys() if old[path] != new[path]]
    return sorted(found)


def _by_path(manifest: bytes) -> dict[str, bytes]:
    fields = manifest.split(b"\0")
    lines = zip(fields[0::3], fields[1::3], fields[2::3], strict=False)  # one empty field is last
    return {os.fsdecode(path): kind + b" " + content for kind, content, path in lines}


def fingerprint(top: Path) -> str:
    """A digest of the ``lstat`` results of a tree; it takes 10 ms for 2,000 files."""
    entries = [("", top.lstat()), *walk(top)]
    lines = (
        f"{path}\0{s.st_ino} {s.st_mode} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns} {s.st_uid}\n"
        for path, s in entries
    )
    return hashlib.sha256(os.fsencode("".join(lines))).hexdigest()


def outside_links(top: Path) -> list[str]:
    """Links to existing paths outside of the tree, such as ``bin/python -> /usr/bin/python3``."""
    found = []
    for path, status in walk(top):
        if stat.S_ISLNK(status.st_mode):
            there = Path(target(top, path))
            if there.is_absolute() and not there.is_relative_to(top) and there.exists():
                found.append(f"{path} -> {there}")
    return found


def remove(top: Path) -> None:
    """Remove a tree, sealed or not, complete or not, if it exists."""
    if not top.is_dir() or top.is_symlink():
        top.unlink(missing_ok=True)
        return
    top.chmod(_WRITABLE_FOLDER)
    for folder, folders, _ in os.walk(top):
        for name in folders:
            inner = Path(folder, name)
            if not inner.is_symlink():
                inner.chmod(_WRITABLE_FOLDER)
    shutil.rmtree(top)
