"""Show a tree at the path that it was installed for, when that path is another user's.

Whoever owns a folder can rename it, and a mount in it is gone then: in every view, without a word.
So nothing is mounted below a folder of someone else. The last folder on the way that only root or
this user can rename is covered as a whole, by a copy of its entries that only this view has; the
rest of the path is made in there.
"""

from __future__ import annotations

import errno
import os
import stat

from . import kernel

#: What is not covered: nothing would be seen of it through "/", and processes need the others.
_NEVER_COVERED = frozenset({"/", "/dev", "/proc", "/run", "/sys"})


def find_base(path: str) -> str:
    """The last folder on the way to a path that nobody but root and this user can rename.

    Called before a user namespace is entered: in it, root has no number.

    Raises:
        PermissionError: It is one that can't be covered.
    """
    base = "/"
    for name in path.strip("/").split("/")[:-1]:
        status, child = os.lstat(base), os.path.join(base, name)
        if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
            break  # whoever may write there may rename what is in it
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


def place(tree: str, path: str, base: str) -> None:
    """Show a tree at a path, in a mount namespace of this process's own.

    Args:
        tree: The tree.
        path: Where it is to be seen.
        base: What ``find_base`` said of the path.

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
        os.chmod(folder, 0o755)  # noqa: S103 - whatever the umask says; others start processes, too
    kernel.bind(tree, path)


def _show(covered: int, name: str, target: str) -> None:
    """Show an entry of a folder that is covered where it was; one that can't be is left out."""
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
