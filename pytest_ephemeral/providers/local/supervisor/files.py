"""Remove what an environment wrote."""

from __future__ import annotations

import os
import shutil


def remove_tree(path: str) -> None:
    """Remove a folder with all that is in it, as far as this user can.

    That it is not there is no error; that it stays is for the caller to see.
    """
    shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):  # a folder in it may have been made unwritable
        _open_up(path)
        shutil.rmtree(path, ignore_errors=True)


def _open_up(path: str) -> None:
    for folder, folders, _ in os.walk(path):
        for name in (".", *folders):
            inner = os.path.join(folder, name)
            if not os.path.islink(inner):
                try:
                    os.chmod(inner, 0o700)
                except OSError:
                    continue
