"""The process groups of a guard's processes: signal them, and check whether they have ended."""

from __future__ import annotations

import os
import sys

from . import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def signal_groups(groups: Sequence[int], number: int) -> list[int]:
    """Send a signal to all processes of groups that ``spawn`` started.

    The number of an ended group may belong to another program by now. So on Linux, only groups of
    this process's descendants are signaled.

    Returns:
        The groups that were signaled.
    """
    if sys.platform == "linux":
        ours = {_group_of(pid) for pid in processes.descendants(os.getpid())}
        groups = [group for group in groups if group in ours]
    for group in groups:
        try:
            os.kill(-group, number)
        except (ProcessLookupError, PermissionError):
            pass  # it has just ended, or belongs to another user
    return list(groups)


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def have_members(groups: Sequence[int]) -> bool:
    """Whether any of these groups has a process; True for a group of another user."""
    for group in groups:
        try:
            os.kill(-group, 0)
        except ProcessLookupError:
            continue
        except PermissionError:
            pass
        return True
    return False
