"""The command ``pytest-ephemeral``: one module a noun, each thin: parse, call, print."""

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

INTERRUPTED: Final = 130  # 128 + SIGINT, as shells say it
_BROKEN_PIPE: Final = 141  # 128 + SIGPIPE
_EPILOG: Final = """\
Exit status: 0 done, 1 failed, 2 usage or configuration, 3 nothing matched, 4 rejected,
5 timed out, 6 something may have leaked, 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: The words after the program's name; by default those it was started with.

    Returns:
        The exit status: the error's own where there was one.
    """
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever the locale, a message gets through
            stream.reconfigure(errors="backslashreplace")
    try:
        with _terminated_like_interrupted():
            status = _run(argv)
            sys.stdout.flush()
    except BrokenPipeError:  # the reader had enough: nothing more can be said to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as ended:  # argparse: wrong (2), or only asked for help (0)
        return int(ended.code or 0)
    return status


def build_parser() -> Parser:
    """The whole grammar of the command line."""
    from pytest_ephemeral.cli import (
        approval,
        artifact,
        board,
        doctor,
        environments,
        images,
        init,
        promote,
        schema,
        up,
    )
    from pytest_ephemeral.cli.arguments import Parser

    parser = Parser(
        prog="pytest-ephemeral",
        description="Environments of their own for test stages: bake, bring up, take down.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=_version())
    parser.set_defaults(json=False, config=None, traceback=False)
    verbs = parser.add_subparsers(metavar="VERB", title="verbs", required=True)
    nouns = (init, doctor, artifact, images, up, environments, approval, board, promote, schema)
    for noun in nouns:
        noun.add_to(verbs)
    return parser


def _run(argv: Sequence[str]) -> int:
    from pytest_ephemeral.cli.arguments import parse
    from pytest_ephemeral.cli.output import Output

    arguments = parse(build_parser(), argv)
    output = Output(as_json=arguments.json)
    try:
        status: int = arguments.do(arguments, output)
    except EphemeralError as error:
        if arguments.traceback:
            raise
        output.say("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]))
        return error.exit_status
    except BrokenPipeError:
        raise
    except OSError as error:  # the machine's word, which needs no translation
        if arguments.traceback:
            raise
        output.say(f"error: {error}")
        return 1
    except Exception as error:
        if arguments.traceback:
            raise
        output.say(f"error: {type(error).__name__}: {error}")
        output.say("This is a bug. Please report it, with what --traceback shows.")
        return 1
    return status


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM end a verb as Ctrl-C does: with everything half-done taken down again."""
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
