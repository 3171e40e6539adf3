"""Someone who outlives this process, however it ends, and then does what is left to do.

A process of its own holds one end of a pipe. When the other end closes without a word, its owner
has died, and it becomes the command it was given. It needs no privileges, no daemon and no
container.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pytest_ephemeral.providers.docker.deadman.watcher import DIED, RELEASED

__all__ = ["DIED", "Deadman", "program"]

_WATCHER: Final = Path(__file__).with_name("watcher.py")


class Deadman:
    """The owner's side of the pipe.

    Args:
        command: What is run when the owner is gone, or leaves something. It is given ``DIED``, or
            what was left, as further arguments.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_WATCHER), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C must not reach it
        )
        if self._process.stdin is None:  # asked for above; said for the type checker
            raise RuntimeError("the watcher has no pipe")
        self._pipe = self._process.stdin
        if hasattr(os, "register_at_fork"):
            # A child that held it open would be taken for the owner.
            os.register_at_fork(after_in_child=self._pipe.close)

    def release(self) -> None:
        """Say that all was seen to: the watcher goes away and does nothing more."""
        with contextlib.suppress(BrokenPipeError):  # it has died: nobody is left to tell
            self._pipe.write(RELEASED.encode())
        self._pipe.close()
        self._process.wait()


def program(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours.

    A file in the current folder never replaces a module of the same name (``-P``).
    """
    return [sys.executable, "-P", "-m", module, *arguments]
