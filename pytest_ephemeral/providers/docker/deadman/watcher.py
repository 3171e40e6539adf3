"""The watcher process: ``python -I -S watcher.py COMMAND…``.

It reads standard input to its end, and then executes the command, unless it has read ``RELEASED``.
It only imports modules that every interpreter has loaded, so it starts fast and needs little
memory.
"""

from __future__ import annotations

import os
import sys

#: The message of an owner that has cleaned up everything.
RELEASED = "released"

#: The command's argument if the owner ended without that message.
DIED = "died"


def main(command: list[str]) -> None:
    """Read standard input to its end, then execute the command.

    Args:
        command: The command.
    """
    message = b""
    while more := os.read(0, 4096):
        message += more
    words = message.decode().split()
    if words == [RELEASED]:
        return
    unfinished = words[:-1] if words[-1:] == [RELEASED] else [DIED]
    os.execv(command[0], [*command, *unfinished])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main(sys.argv[1:])
