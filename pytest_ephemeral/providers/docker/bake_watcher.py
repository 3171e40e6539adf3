"""The watcher process of a bake: ``python -I -S bake_watcher.py COMMAND…``.

It reads standard input to its end, and then executes the command, unless it has read ``RELEASED``.
It only imports modules that every interpreter has loaded, so it starts fast and needs little
memory.
"""

from __future__ import annotations

import os
import sys

#: The message of a process that has cleaned up everything.
RELEASED = b"released"


def main(command: list[str]) -> None:
    """Read standard input to its end, then execute the command.

    Args:
        command: The command.
    """
    message = b""
    while more := os.read(0, 4096):
        message += more
    if message != RELEASED:
        os.execv(command[0], command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main(sys.argv[1:])
