"""What the processes of an environment see: some trees read-only, some at another path."""

from __future__ import annotations

import os

from . import kernel, placing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def protect(paths: list[str], mark: str = "", places: Mapping[str, str] | None = None) -> str:
    """Give this process and its children a view in which these trees are read-only.

    Args:
        paths: Folders or files that exist in that view.
        mark: A file that is mounted onto itself in that view: ``/proc/PID/mountinfo`` of all that
            is started in it says so, whatever becomes of its variables and its parent.
        places: Trees that are seen somewhere else in that view, by where; see ``placing``.

    Returns:
        Why the kernel does not allow it; empty when it is done.
    """
    if not paths and (not kernel.IS_LINUX or os.geteuid() != 0):
        return ""  # a user namespace would take more from the application than it is worth
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
    """The same in a user namespace, which needs no privileges; 0, or the error's number."""
    # One that was entered but may not be set up (AppArmor does that on Ubuntu 24.04) leaves a
    # process without a user. So a child tries it first.
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
    """What a mount namespace shows besides what all see; see ``protect``."""

    def __init__(self, paths: Sequence[str], mark: str, places: Mapping[str, str]) -> None:
        self._paths = paths
        self._mark = mark
        # Looked for now: once a user namespace is entered, root has no number.
        self._places = [(tree, path, placing.find_base(path)) for path, tree in places.items()]

    def make(self) -> int:
        """Make it, in a mount namespace of this process's own; 0, or the error's number."""
        try:
            kernel.receive_mounts()
            for tree, path, base in self._places:
                placing.place(tree, path, base)
            if self._mark:
                kernel.bind(self._mark, self._mark)
            for path in self._paths:
                kernel.make_read_only(path)
        except OSError as error:
            return error.errno or 1
        return 0
