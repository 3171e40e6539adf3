"""Overlay mounts over a baseline, for files that processes write; see ``local.rollback``."""

from __future__ import annotations

import os
import stat

from . import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: The endings of the folders beside a mount point: the lower layer, the upper layer, and the work
#: folder of the kernel.
BASELINE, UPPER, WORK = ".baseline", ".upper", ".work"
#: Characters that separate mount options, so paths can't have them.
_SPECIAL = frozenset(",:\\")


class WriteLayers:
    """The overlay mounts of one environment, in its processes' mount namespace."""

    def __init__(self) -> None:
        self._folders: list[str] = []

    def renew(self, folders: Sequence[str], number: int) -> str:
        """Replace the upper layer over each baseline by a new, empty one.

        Args:
            folders: The mount points.
            number: The new layers' number, a new one each time; it is part of their names.

        Returns:
            Why the kernel refuses, and then nothing is mounted; or empty.
        """
        self.remove()
        try:
            for folder in folders:
                self._put(folder, number)
        except OSError as error:
            self.remove()
            return str(error.strerror or error)
        return ""

    def remove(self) -> None:
        """Unmount all layers."""
        while self._folders:
            kernel.unmount(self._folders.pop())

    def _put(self, folder: str, number: int) -> None:
        if _SPECIAL & set(folder):
            raise OSError(f"{folder} contains a character that mount options can't contain")
        lower, upper, work = (
            folder + BASELINE,
            f"{folder}{UPPER}{number}",
            f"{folder}{WORK}{number}",
        )
        status = os.stat(lower)
        for new in (upper, work):
            os.mkdir(new)
            os.chown(new, status.st_uid, status.st_gid)
            os.chmod(new, stat.S_IMODE(status.st_mode))
        kernel.mount_layer(lower, upper, work, folder)
        self._folders.append(folder)
