"""``board``: serve the page that shows environments and records approvals."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_ephemeral.cli.arguments import add_command, count
from pytest_ephemeral.cli.output import Printer
from pytest_ephemeral.cli.session import open_project
from pytest_ephemeral.errors import UnavailableError

if TYPE_CHECKING:
    from pytest_ephemeral.cli.arguments import Subcommands

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8765


def add_to(commands: Subcommands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "board",
        board,
        "serve a page that shows environments and takes approvals",
        epilog="Prints the page's URL with its token, and serves it until interrupted. It does not "
        "speak TLS: put a TLS proxy in front of it if other machines can reach it.",
    )
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        default=DEFAULT_HOST,
        help=f"the address to listen on; by default {DEFAULT_HOST}",
    )
    parser.add_argument(
        "--port",
        type=count,
        default=DEFAULT_PORT,
        help=f"by default {DEFAULT_PORT}; 0 takes a free one",
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        help="where the token is kept; by default in this machine's state directory",
    )


def board(arguments: argparse.Namespace, output: Printer) -> int:
    """Print the board's URL, and serve the board until interrupted."""
    project = open_project(arguments)
    try:
        from pytest_ephemeral.promotion.board import serving
    except ImportError as error:
        raise UnavailableError(
            f"the board needs {error.name!r}, which is not installed: "
            "pip install 'pytest-ephemeral[board]'"
        ) from error
    token = serving.token(arguments.token_file)
    with serving.server(project, token, arguments.host, arguments.port) as (url, run):
        output.result(url, url=url)
        sys.stdout.flush()  # in a pipe, stdout is buffered, and the reader needs the URL now
        run()
    return 0
