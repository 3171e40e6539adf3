"""The process groups of what a guard has started: asked to stop, and waited for."""

from __future__ import annotations

import os
import sys

from . import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def signal_groups(groups: Sequence[int], number: int) -> list[int]:
    """Send a signal to all processes of groups that ``spawn`` started.

    Returns:
        Those that were sent it. The number of a group that has ended may be someone else's by now:
        where this process is a subreaper, what is left of its groups descends from it.
    """
    if sys.platform == "linux":
        ours = {_group_of(pid) for pid in processes.descendants(os.getpid())}
        groups = [group for group in groups if group in ours]
    for group in groups:
        try:
            os.kill(-group, number)
        except (ProcessLookupError, PermissionError):
            pass  # it has just ended, or belongs to someone else
    return list(groups)


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def have_members(groups: Sequence[int]) -> bool:
    """Whether a process is left in any of these groups; of another user's, one may be."""
    for group in groups:
        try:
            os.kill(-group, 0)
        except ProcessLookupError:
            continue
        except PermissionError:
            pass
        return True
    return False
