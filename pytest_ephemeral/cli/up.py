"""``up``: bring up an environment that stays up after the command."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pytest_ephemeral.cli import progress
from pytest_ephemeral.cli.arguments import add_command, add_template_arguments
from pytest_ephemeral.cli.output import Printer
from pytest_ephemeral.cli.owner import lease
from pytest_ephemeral.cli.session import open_project

if TYPE_CHECKING:
    from pytest_ephemeral.cli.arguments import Subcommands


def add_to(commands: Subcommands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "up",
        up,
        "bring up an environment and print its URL",
        epilog="It stays up until `pytest-ephemeral down`, or until it expires.",
    )
    add_template_arguments(parser)


def up(arguments: argparse.Namespace, output: Printer) -> int:
    """Bring up an environment, keep it, and print its URL.

    If this is interrupted before the environment is kept, the owner process destroys the
    environment; it continues after this process has ended.
    """
    with (
        progress.show() as say,
        lease(arguments.template, arguments.config, say, ttl=arguments.ttl) as held,
    ):
        held.keep()
    environment = open_project(arguments).ledger.get(held.environment.id)
    output.result(environment.url or environment.id, environment=environment, seconds=held.seconds)
    return 0
