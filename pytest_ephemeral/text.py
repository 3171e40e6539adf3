"""Text from outside, made safe to print: one line, no control characters, no CI commands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

#: What makes a CI server read a command in the middle of a line: ``##vso[…]`` (Azure Pipelines),
#: ``##[…]`` (GitHub Actions), ``##teamcity[…]``.
_COMMAND: Final = re.compile(r"##(?=[a-z]*\[)", re.IGNORECASE)


def one_line(text: str) -> str:
    """A person's or a record's text as one line that no terminal or CI server interprets.

    Args:
        text: Any text, such as a comment.

    Returns:
        The text with spaces for line ends and tabs, without other control characters (also not
        those that change the direction of writing), and with ``# #`` for the start of a command.
    """
    spaced = "".join(" " if letter.isspace() else letter for letter in text)
    return _COMMAND.sub("# #", "".join(letter for letter in spaced if letter.isprintable()))


def printable(text: str) -> str:
    """Text of several lines without control characters, for messages that we compose."""
    kept = "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")
    return _COMMAND.sub("# #", kept)


def check_argv(argv: Sequence[str]) -> Sequence[str]:
    """A command and its arguments.

    Raises:
        TypeError: It is one string, whose letters would be taken for arguments.
    """
    if isinstance(argv, str | bytes):
        raise TypeError(f'run: argv is a list, such as ["ls", "-l"], not {argv!r}')
    return argv
