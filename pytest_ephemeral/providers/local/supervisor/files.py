"""Remove what an environment wrote."""

from __future__ import annotations

import os
import shutil

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .orders import Orders

#: The file in an environment's folder that says whose it is.
LABELS = "labels.json"
#: A file in it that says that nothing is mounted in the view of its processes: by that, those would
#: be found that have cleared their variables.
UNMARKED = "unmarked"
#: A link in it, to where processes of other users write; see ``accounts``.
STATES = "states"
#: What the names of folders begin with that are being removed.
ASIDE = ".old-"


def remove_folders(orders: Orders, *, orphaned: bool) -> None:
    """Remove the folders of a guard that has ended all else, and more if it had lost its owner."""
    from . import kernel

    if orders.mark:
        kernel.unmount(orders.mark)
    for folder in orders.remove:
        remove_environment(folder)
    for folder in orders.remove_orphaned if orphaned else ():
        remove_tree(folder)


def remove_tree(path: str) -> None:
    """Remove a folder with all that is in it, as far as this user can.

    That it is not there is no error; that it stays is for the caller to see.
    """
    shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):  # a folder in it may have been made unwritable
        _open_up(path)
        shutil.rmtree(path, ignore_errors=True)


def remove_environment(path: str) -> None:
    """Remove an environment's folder, so that whoever looks sees all of it or nothing.

    It is moved aside first. What says whose it is goes last, so that the rest is found by that if
    this process is killed in between; what can't be removed is moved back.
    """
    aside = os.path.join(os.path.dirname(path), ASIDE + os.urandom(8).hex())
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    except OSError:
        aside = path
    for name in os.listdir(aside):
        if name != LABELS:
            inner = os.path.join(aside, name)
            if name == STATES and not _remove_states(inner):
                continue  # it is what leads there
            if os.path.isdir(inner) and not os.path.islink(inner):
                remove_tree(inner)
            else:
                os.unlink(inner)
    if os.listdir(aside) in ([], [LABELS]):
        remove_tree(aside)
    elif aside != path:
        os.rename(aside, path)


def _remove_states(link: str) -> bool:
    """Remove what a link of ours leads to; whether that is gone, and never was anything else."""
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
