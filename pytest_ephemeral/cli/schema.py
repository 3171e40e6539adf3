"""``schema``: the JSON Schema of ephemeral.toml."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pytest_ephemeral.cli.arguments import add_command
from pytest_ephemeral.cli.output import Printer

if TYPE_CHECKING:
    from pytest_ephemeral.cli.arguments import Subcommands


def add_to(commands: Subcommands) -> None:
    """Add the command."""
    add_command(commands, "schema", schema, "print the JSON Schema of ephemeral.toml")


def schema(_: argparse.Namespace, output: Printer) -> int:
    """Print the schema, with the keys of every installed provider."""
    from pytest_ephemeral import providers
    from pytest_ephemeral.schema import format_schema
    from pytest_ephemeral.schema import schema as made

    output.line(format_schema(made(providers.names())).rstrip())
    return 0
