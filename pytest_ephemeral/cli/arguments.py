"""The command line's grammar: what argparse leaves to be wished for, and what verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pytest_ephemeral.cli.output import Output
from pytest_ephemeral.durations import Duration
from pytest_ephemeral.errors import closest

#: A verb: does it, and returns the exit status.
Do: TypeAlias = Callable[[argparse.Namespace, Output], int]

if TYPE_CHECKING:
    Verbs: TypeAlias = argparse._SubParsersAction["Parser"]  # noqa: SLF001 - it has no other name


class Parser(argparse.ArgumentParser):
    """Names the closest verb or option to a mistyped one."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings
        )
        shared = self.add_argument_group("everywhere")
        # SUPPRESS: a verb's parser must not undo what was given before the verb.
        shared.add_argument(
            "--json",
            action="store_true",
            default=argparse.SUPPRESS,
            help="print one JSON object on stdout; talk goes to stderr",
        )
        shared.add_argument(
            "--config",
            metavar="FILE",
            type=Path,
            default=argparse.SUPPRESS,
            help="the configuration, instead of the ephemeral.toml found from here upwards",
        )
        shared.add_argument(
            "--traceback",
            action="store_true",
            default=argparse.SUPPRESS,
            help="on an error, show where in the program it happened",
        )

    def options(self) -> list[str]:
        """The options it knows."""
        return list(self._option_string_actions)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = closest(str(value), [str(choice) for choice in action.choices])
            raise argparse.ArgumentError(None, f"there is no {value!r} here.{known}")


def parse(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Read a command line.

    What stands after ``--`` is not looked at: it is ``arguments.command``.

    Raises:
        SystemExit: It is wrong (2), or only asked for help (0).
    """
    mine, separator, command = _partition(argv)
    arguments, unknown = parser.parse_known_args(mine)
    at: Parser = getattr(arguments, "parser", parser)
    if unknown and unknown[0].startswith("-"):
        option = unknown[0].partition("=")[0]
        at.error(f"there is no option {option!r} here.{closest(option, at.options())}")
    if unknown:
        at.error(f"unexpected: {unknown[0]!r}")
    if separator and not getattr(arguments, "takes_command", False):
        at.error("nothing may follow `--` here")
    arguments.command = command
    return arguments


def add_verb(verbs: Verbs, name: str, do: Do, help: str, **settings: Any) -> Parser:  # noqa: A002
    """Add a verb.

    Args:
        verbs: Where.
        name: As it is typed.
        do: What it does.
        help: One line; in its own help, what it is about.
        settings: For its parser.
    """
    parser = verbs.add_parser(name, help=help, **{"description": f"{help}.", **settings})
    parser.set_defaults(do=do, parser=parser)
    return parser


def add_group(verbs: Verbs, name: str, help: str, *, do: Do | None = None) -> Verbs:  # noqa: A002
    """Add a noun that has verbs of its own.

    Args:
        verbs: Where.
        name: As it is typed.
        help: One line.
        do: What the noun alone does; None when a verb has to follow.
    """
    parser = verbs.add_parser(name, help=help, description=f"{help}.")
    parser.set_defaults(do=do, parser=parser)
    return parser.add_subparsers(metavar="VERB", title="verbs", required=do is None)


def duration(text: str) -> Duration:
    """The type of an option that is a length of time."""
    try:
        return Duration.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    """The type of an option that is a number of things."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number such as 5, got {text!r}")
    return int(text)


def _partition(argv: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    words = list(argv)
    if "--" not in words:
        return words, False, []
    at = words.index("--")
    return words[:at], True, words[at + 1 :]
