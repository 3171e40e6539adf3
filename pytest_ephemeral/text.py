"""Make text from outside safe to print: without control characters and CI commands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

#: The start of a command that CI servers execute even in the middle of a printed line: ``##vso[…]``
#: (Azure Pipelines), ``##[…]`` (GitHub Actions), ``##teamcity[…]``.
_COMMAND: Final = re.compile(r"##(?=[a-z]*\[)", re.IGNORECASE)


def one_line(text: str) -> str:
    """Turn a text into one line that no terminal or CI server interprets.

    Args:
        text: Any text, such as a comment of a user.

    Returns:
        The text, with spaces instead of line ends and tabs, without control characters (and those
        that change the direction of text), and with ``# #`` at the start of commands.
    """
    spaced = "".join(" " if letter.isspace() else letter for letter in text)
    return _COMMAND.sub("# #", "".join(letter for letter in spaced if letter.isprintable()))


def printable(text: str) -> str:
    """Remove control characters from a text, except line ends and tabs, for messages of ours."""
    kept = "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")
    return _COMMAND.sub("# #", kept)


def check_argv(argv: Sequence[str]) -> Sequence[str]:
    """Check a command with its arguments, and return it.

    Raises:
        TypeError: It is a string, whose characters would be used as arguments.
    """
    if isinstance(argv, str | bytes):
        __tracebackhide__ = True
        raise TypeError(f'run: argv is a list, such as ["ls", "-l"], not {argv!r}')
    return argv
