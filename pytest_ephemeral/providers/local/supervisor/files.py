"""Remove the folders of an environment."""

from __future__ import annotations

import os
import shutil

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .orders import Orders

#: The file in an environment's folder with its labels, by which it is identified.
LABELS = "labels.json"
#: A file in it that exists if nothing is mounted in the processes' mount namespace. Then processes
#: that have cleared their variables can't be found.
UNMARKED = "unmarked"
#: A link in it to the folders of other users' processes; see ``accounts``.
STATES = "states"
#: The start of the names of folders that are being removed.
ASIDE = ".old-"


def remove_folders(orders: Orders, *, orphaned: bool) -> None:
    """Remove the folders in a guard's orders, after all processes have ended.

    Args:
        orders: The guard's orders.
        orphaned: Whether to remove also those of ``remove_orphaned``.
    """
    from . import kernel

    if orders.mark:
        kernel.unmount(orders.mark)
    for folder in orders.remove:
        remove_environment(folder)
    for folder in orders.remove_orphaned if orphaned else ():
        remove_tree(folder)


def remove_tree(path: str) -> None:
    """Remove a folder with its content, as far as this user can.

    It raises no errors: the caller must check whether the folder is gone.
    """
    shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):  # a folder in it may be read-only
        _open_up(path)
        shutil.rmtree(path, ignore_errors=True)


def remove_environment(path: str) -> None:
    """Remove an environment's folder, so that others see all of it or nothing.

    The folder is renamed first. Its labels are removed last, so that the rest is found by them if
    this process is killed. If something can't be removed, the folder is renamed back.
    """
    aside = os.path.join(os.path.dirname(path), ASIDE + os.urandom(8).hex())
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    except OSError:
        aside = path
    try:
        _empty(aside)
        if os.listdir(aside) in ([], [LABELS]):
            remove_tree(aside)
        elif aside != path:
            os.rename(aside, path)
    except FileNotFoundError:
        if os.path.lexists(aside):
            raise
        # Another process has renamed it, to remove it as a leftover.


def _empty(folder: str) -> None:
    """Remove what is in an environment's folder, but for its labels."""
    for name in os.listdir(folder):
        if name != LABELS:
            inner = os.path.join(folder, name)
            if name == STATES and not _remove_states(inner):
                continue  # keep the link to the remaining files
            if os.path.isdir(inner) and not os.path.islink(inner):
                remove_tree(inner)
            else:
                os.unlink(inner)


def _remove_states(link: str) -> bool:
    """Remove the target of a ``STATES`` link, if it is ours; return whether it is gone."""
    target = os.readlink(link)
    if os.path.basename(os.path.dirname(target)) != STATES:
        return False
    try:
        if os.lstat(target).st_uid != os.geteuid():
            return False
    except FileNotFoundError:
        return True
    remove_tree(target)
    return not os.path.lexists(target)


def _open_up(path: str) -> None:
    for folder, folders, _ in os.walk(path):
        for name in (".", *folders):
            inner = os.path.join(folder, name)
            if not os.path.islink(inner):
                try:
                    os.chmod(inner, 0o700)
                except OSError:
                    continue
