"""The program ``pytest-ephemeral``. Each module adds the commands for one kind of object."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from pytest_ephemeral.errors import EphemeralError

if TYPE_CHECKING:
    from pytest_ephemeral.cli.arguments import Parser

INTERRUPTED: Final = 130  # 128 + SIGINT, the shells' convention
_BUG: Final = "This is a bug. Please report it with the output of --traceback."
_BROKEN_PIPE: Final = 141  # 128 + SIGPIPE
_EPILOG: Final = """\
Exit status: 0 success, 1 failure, 2 usage or configuration error,
3 nothing matched, 4 rejected, 5 timed out, 6 something may have leaked,
130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: The arguments, without the program's name; by default those of ``sys.argv``.

    Returns:
        The exit status; after an ``EphemeralError``, that error's ``exit_status``.
    """
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # any text can be printed in any locale
            stream.reconfigure(errors="backslashreplace")
    try:
        with _treat_sigterm_as_interrupt():
            status = _run(argv)
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of stdout closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as ended:  # argparse: a usage error (2), or --help and --version (0)
        return int(ended.code or 0)
    return status


def build_parser() -> Parser:
    """Make the parser of all commands."""
    from pytest_ephemeral.cli import (
        approval,
        artifact,
        board,
        destroy,
        doctor,
        environments,
        images,
        init,
        promote,
        schema,
        up,
        with_command,
    )
    from pytest_ephemeral.cli.arguments import Parser

    parser = Parser(
        prog="pytest-ephemeral",
        description="Ephemeral environments for test stages: bake images, bring environments up, "
        "destroy them.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=_version())
    parser.set_defaults(json=False, config=None, traceback=False)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", required=True)
    everyday = (init, doctor, artifact, images, with_command, up, environments, destroy)
    for module in (*everyday, approval, board, promote, schema):
        module.add_to(commands)
    return parser


def _run(argv: Sequence[str]) -> int:
    from pytest_ephemeral.cli import completion
    from pytest_ephemeral.cli.arguments import UsageExit, parse
    from pytest_ephemeral.cli.output import Printer, find_hint

    try:
        parser = build_parser()
        completion.complete(parser)
        arguments = parse(parser, argv)
    except UsageExit as error:
        Printer(as_json="--json" in argv).fail("UsageError", error.message, "", error.code)
        raise
    output = Printer(as_json=arguments.json)
    try:
        status: int = arguments.do(arguments, output)
    except EphemeralError as error:
        if arguments.traceback:
            raise
        notes = getattr(error, "__notes__", [])
        output.say("\n".join([f"error: {error}", *notes]))
        hint = "\n".join(notes) or find_hint(str(error))
        output.fail(type(error).__name__, str(error), hint, error.exit_status)
        return error.exit_status
    except BrokenPipeError:
        raise
    except OSError as error:  # the operating system's message is clear enough
        if arguments.traceback:
            raise
        output.say(f"error: {error}")
        output.fail(type(error).__name__, str(error), "", 1)
        return 1
    except Exception as error:
        if arguments.traceback:
            raise
        output.say(f"error: {type(error).__name__}: {error}")
        output.say(_BUG)
        output.fail(type(error).__name__, str(error), _BUG, 1)
        return 1
    return status


@contextmanager
def _treat_sigterm_as_interrupt() -> Iterator[None]:
    """Within the block, SIGTERM raises KeyboardInterrupt, as Ctrl-C does, so that cleanup runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _version() -> str:
    from importlib.metadata import version

    return f"pytest-ephemeral {version('pytest-ephemeral')}"
