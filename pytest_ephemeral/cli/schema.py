"""``schema``: the JSON Schema of ephemeral.toml."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pytest_ephemeral.cli.arguments import add_verb
from pytest_ephemeral.cli.output import Output

if TYPE_CHECKING:
    from pytest_ephemeral.cli.arguments import Verbs


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    add_verb(verbs, "schema", schema, "print the JSON Schema of ephemeral.toml")


def schema(_: argparse.Namespace, output: Output) -> int:
    """Print it, with the images and templates of every provider that is installed."""
    from pytest_ephemeral import providers
    from pytest_ephemeral.schema import schema as made
    from pytest_ephemeral.schema import written

    output.line(written(made(providers.names())).rstrip())
    return 0
