"""The watcher: ``python -I -S watcher.py COMMAND…``, which reads a pipe to its end.

It imports nothing but what every interpreter has loaded, so that it takes next to nothing from the
processors while an environment comes up, and little memory for as long as that stays. When the
pipe ends, it becomes the command, given what was said in it; unless that is that there is nothing
to do.
"""

from __future__ import annotations

import os
import sys

#: The message of an owner that has cleaned up everything.
RELEASED = "released"

#: The argument of the command after an owner that ended without that message.
DIED = "died"


def main(command: list[str]) -> None:
    """Keep watch on standard input.

    Args:
        command: What to become.
    """
    said = b""
    while more := os.read(0, 4096):
        said += more
    words = said.decode().split()
    if words == [RELEASED]:
        return
    unfinished = words[:-1] if words[-1:] == [RELEASED] else [DIED]
    os.execv(command[0], [*command, *unfinished])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main(sys.argv[1:])
