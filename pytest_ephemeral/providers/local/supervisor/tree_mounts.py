"""Mount a tree at the path that it was installed for, if other users own part of that path.

The owner of a folder can rename it, which silently removes mounts in it. So nothing is mounted
below a folder of another user. Instead, an empty file system is mounted over the last folder of the
path that only root or this user can rename. The folder's entries are mounted in it, and the rest of
the path is created in it.
"""

from __future__ import annotations

import errno
import os
import stat

from . import kernel

#: Folders that nothing is mounted over, as processes need them.
_NEVER_COVERED = frozenset({"/", "/dev", "/proc", "/run", "/sys"})


def find_base(path: str) -> str:
    """The last folder of a path that only root and this user can rename.

    It must be called before a user namespace is entered, in which root has no user id.

    Raises:
        PermissionError: Nothing can be mounted over this folder.
    """
    base = "/"
    for name in path.strip("/").split("/")[:-1]:
        status, child = os.lstat(base), os.path.join(base, name)
        if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
            break  # others may rename the folder's entries
        try:
            found = os.lstat(child)
        except OSError:
            break
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {0, os.geteuid()}:
            break
        base = child
    if base in _NEVER_COVERED:
        raise PermissionError(errno.EPERM, f"{base} can't be covered to show something at {path}")
    return base


def mount_tree(tree: str, path: str, base: str) -> None:
    """Mount a tree at a path, in this process's own mount namespace.

    Args:
        tree: The tree's folder.
        path: The path to mount it at.
        base: The result of ``find_base`` for the path.

    Raises:
        OSError: The kernel does not allow it.
    """
    first, *_ = os.path.relpath(path, base).split("/")
    covered = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mode = stat.S_IMODE(os.fstat(covered).st_mode)
        kernel.mount_empty(base, mode)
        for name in os.listdir(covered):
            if name != first:
                _show(covered, name, os.path.join(base, name))
    finally:
        os.close(covered)
    folder = base
    for name in os.path.relpath(path, base).split("/"):
        folder = os.path.join(folder, name)
        os.mkdir(folder)
        os.chmod(folder, 0o755)  # noqa: S103 - other users must enter it; mkdir applies the umask
    kernel.bind(tree, path)


def _show(covered: int, name: str, target: str) -> None:
    """Mount an entry of the covered folder at its old path, if possible."""
    source = f"/proc/self/fd/{covered}/{name}"
    try:
        mode = os.stat(name, dir_fd=covered, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(name, dir_fd=covered), target)
            return
        if stat.S_ISDIR(mode):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC, 0o600))
        kernel.bind(source, target)
    except OSError:
        return
