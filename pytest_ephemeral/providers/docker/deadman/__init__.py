"""A process that outlives this one, and cleans up if this one dies.

The watcher process reads from a pipe. If the pipe ends without a message, this process has died,
and the watcher executes a command. It needs no privileges, no daemon and no container.
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
    """The writing end of the pipe, in this process.

    Args:
        command: The command to execute if this process dies; it gets ``DIED`` as an argument.
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
        if self._process.stdin is None:  # for the type checker: it is a pipe
            raise RuntimeError("the watcher has no pipe")
        self._pipe = self._process.stdin
        if hasattr(os, "register_at_fork"):
            # A forked child must not keep the pipe open.
            os.register_at_fork(after_in_child=self._pipe.close)

    def release(self) -> None:
        """End the watcher without executing the command."""
        with contextlib.suppress(BrokenPipeError):  # the watcher has died
            self._pipe.write(RELEASED.encode())
        self._pipe.close()
        self._process.wait()


def program(module: str, *arguments: str) -> list[str]:
    """The command that runs one of our modules.

    With ``-P``, a file in the current folder never replaces a module of the same name.
    """
    return [sys.executable, "-P", "-m", module, *arguments]
