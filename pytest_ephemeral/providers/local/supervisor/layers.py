"""What processes write, in a layer over a baseline that stays as it is; see ``local.rollback``."""

from __future__ import annotations

import os
import stat

from . import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

#: What the names of folders end with, beside the one that processes see: what lies below, what
#: they have written, and what the kernel needs besides.
BASELINE, UPPER, WORK = ".baseline", ".upper", ".work"
#: These would end a path among the options of a mount.
_SPECIAL = frozenset(",:\\")


class WriteLayers:
    """The layers of one environment, in the view that its processes have."""

    def __init__(self) -> None:
        self._folders: list[str] = []

    def renew(self, folders: Sequence[str], number: int) -> str:
        """Put an empty layer over the baseline of each folder, in the place of the last one.

        Args:
            folders: Where they are seen.
            number: A new one each time; it is part of the layers' names.

        Returns:
            Why the kernel does not allow it, and then there is none; empty when it is done.
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
        """Take all layers away."""
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
