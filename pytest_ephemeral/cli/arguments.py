"""The command line's parser: argparse with better errors, and the global options."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from pytest_ephemeral.cli.output import Printer
from pytest_ephemeral.durations import Duration
from pytest_ephemeral.errors import closest
from pytest_ephemeral.text import printable

#: Runs a command and returns the exit status.
Handler: TypeAlias = Callable[[argparse.Namespace, Printer], int]

if TYPE_CHECKING:
    Subcommands: TypeAlias = argparse._SubParsersAction["Parser"]  # noqa: SLF001 - it has no other name


class UsageExit(SystemExit):
    """The command line has an error; the process exits with status 2.

    Attributes:
        message: The error, for people.
    """

    code: int = 2

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message


class _Formatter(argparse.HelpFormatter):
    """Wraps each line of a description by itself, so that its line ends stay."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(
            textwrap.fill(line, width, initial_indent=indent, subsequent_indent=indent)
            for line in text.splitlines()
        )


class Parser(argparse.ArgumentParser):
    """A parser whose errors name the command or option closest to a mistyped one."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **settings)
        shared = self.add_argument_group("global options")
        # SUPPRESS: without it, the command's parser would reset options given before the command.
        shared.add_argument(
            "--json",
            action="store_true",
            default=argparse.SUPPRESS,
            help="print one JSON object on stdout; progress goes to stderr",
        )
        shared.add_argument(
            "--config",
            metavar="FILE",
            type=Path,
            default=argparse.SUPPRESS,
            help="the configuration file; by default the nearest ephemeral.toml in this or a "
            "parent directory",
        )
        shared.add_argument(
            "--traceback",
            action="store_true",
            default=argparse.SUPPRESS,
            help="on an error, show the traceback",
        )

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit with 2."""
        if message == "the following arguments are required: COMMAND":
            message = f"a command is missing: `{self.prog} --help` lists them"
        self.print_usage(sys.stderr)
        print(printable(f"{self.prog}: error: {message}"), file=sys.stderr)
        raise UsageExit(message)

    def options(self) -> list[str]:
        """All options of this parser, such as ``--json`` and ``-h``."""
        return list(self._option_string_actions)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = closest(str(value), [str(choice) for choice in action.choices])
            raise argparse.ArgumentError(None, f"unknown command {value!r}.{known}")


def parse(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line. The words after ``--`` become ``arguments.command``, unparsed.

    Raises:
        SystemExit: The command line has an error (status 2), or asks for help (status 0).
    """
    mine, separator, command = _partition(argv)
    arguments, unknown = parser.parse_known_args(mine)
    at: Parser = getattr(arguments, "parser", parser)
    if unknown and unknown[0].startswith("-"):
        option = unknown[0].partition("=")[0]
        at.error(f"unknown option {option!r}.{closest(option, at.options())}")
    if unknown:
        at.error(f"unexpected argument {unknown[0]!r}")
    if separator and not getattr(arguments, "takes_command", False):
        at.error("this command takes nothing after `--`")
    arguments.command = command
    return arguments


def add_command(
    commands: Subcommands,
    name: str,
    do: Handler,
    help: str,  # noqa: A002
    **settings: Any,
) -> Parser:
    """Add a command.

    Args:
        commands: The group of commands to add it to.
        name: The command's name.
        do: The function that runs it.
        help: Its description in one line, without a full stop.
        settings: Further arguments of the command's ``Parser``.
    """
    parser = commands.add_parser(name, help=help, **{"description": _sentence(help), **settings})
    parser.set_defaults(do=do, parser=parser)
    return parser


def add_environment_argument(parser: Parser) -> None:
    """Have a command take the environment that it acts on."""
    parser.add_argument("id", metavar="ENV", help="an environment's id, or a unique prefix")


def add_template_arguments(parser: Parser) -> None:
    """Have a command take the template that it brings up, and how long that may live."""
    parser.add_argument(
        "template",
        metavar="TEMPLATE",
        nargs="?",
        help="by default the configuration's default-template, or the only template",
    )
    parser.add_argument(
        "--ttl",
        metavar="TIME",
        type=_lifetime,
        help="when it expires, instead of its template's ttl: 2h",
    )


def add_group(
    commands: Subcommands,
    name: str,
    help: str,  # noqa: A002
    *,
    do: Handler | None = None,
) -> Subcommands:
    """Add a command that has subcommands.

    Args:
        commands: The group of commands to add it to.
        name: The command's name.
        help: Its description in one line, without a full stop.
        do: The function to run without a subcommand; None if a subcommand is required.

    Returns:
        The group to add the subcommands to.
    """
    parser = commands.add_parser(name, help=help, description=_sentence(help))
    parser.set_defaults(do=do, parser=parser)
    return parser.add_subparsers(metavar="COMMAND", title="commands", required=do is None)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def duration(text: str) -> Duration:
    """Convert an option's value such as ``90s`` or ``5m``: an argparse type."""
    try:
        return Duration.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _lifetime(text: str) -> Duration:
    """Convert the value of ``--ttl``: an argparse type."""
    found = duration(text)
    if found <= 0:
        raise argparse.ArgumentTypeError(f"expected more than 0, got {text!r}")
    return found


def count(text: str) -> int:
    """Convert an option's value to a whole number from 0: an argparse type."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number such as 5, got {text!r}")
    return int(text)


def _partition(argv: Sequence[str]) -> tuple[list[str], bool, list[str]]:
    words = list(argv)
    if "--" not in words:
        return words, False, []
    at = words.index("--")
    return words[:at], True, words[at + 1 :]
