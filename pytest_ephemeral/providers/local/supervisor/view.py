"""The mount namespace of an environment's processes: read-only trees, and trees at other paths."""

from __future__ import annotations

import os

from . import kernel, tree_mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def protect(paths: list[str], mark: str = "", places: Mapping[str, str] | None = None) -> str:
    """Create a mount namespace for this process and its children, with read-only trees.

    Args:
        paths: Folders or files to make read-only.
        mark: A file to mount onto itself. Processes are found by it in ``/proc/PID/mountinfo``,
            even if they have cleared their variables and lost their parent.
        places: Trees to mount, by the path to mount them at; see ``tree_mounts``.

    Returns:
        Why the kernel refuses, or empty.
    """
    if not paths and (not kernel.IS_LINUX or os.geteuid() != 0):
        return ""  # a user namespace would restrict the application for little benefit
    if not kernel.IS_LINUX:
        return "only Linux has mount namespaces"
    view = _View(paths, mark, places or {})
    failed = 0
    if kernel.unshare_mounts():
        failed = view.make()
    elif paths:
        failed = _protect_as_user(view)
    return os.strerror(failed) if failed else ""


def _protect_as_user(view: _View) -> int:
    """Set up the view in a user namespace, without privileges; return 0, or the errno."""
    # Some systems (Ubuntu 24.04, by AppArmor) let a process enter a user namespace, but not set it
    # up, which leaves it without a user. So a child tries it first.
    pid = os.fork()
    if pid == 0:
        os._exit(_enter(view))
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) or _enter(view)


def _enter(view: _View) -> int:
    try:
        kernel.unshare_user_and_mounts()
    except OSError as error:
        return error.errno or 1
    return view.make()


class _View:
    """The mounts of a mount namespace; see ``protect``."""

    def __init__(self, paths: Sequence[str], mark: str, places: Mapping[str, str]) -> None:
        self._paths = paths
        self._mark = mark
        # Before a user namespace is entered, in which root has no user id.
        self._places = [(tree, path, tree_mounts.find_base(path)) for path, tree in places.items()]

    def make(self) -> int:
        """Mount all, in this process's own mount namespace; return 0, or the errno."""
        try:
            kernel.receive_mounts()
            for tree, path, base in self._places:
                tree_mounts.mount_tree(tree, path, base)
            if self._mark:
                kernel.bind(self._mark, self._mark)
            for path in self._paths:
                kernel.make_read_only(path)
        except OSError as error:
            return error.errno or 1
        return 0
