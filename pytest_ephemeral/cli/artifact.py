"""``artifact push`` and ``artifact list``: the built files that images are baked from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_ephemeral.cli.arguments import add_command, add_group
from pytest_ephemeral.cli.output import Printer, short, since, size
from pytest_ephemeral.cli.session import open_project

if TYPE_CHECKING:
    from pytest_ephemeral.cli.arguments import Subcommands


def add_to(commands: Subcommands) -> None:
    """Add the commands."""
    under = add_group(commands, "artifact", "push and list built files")
    pushing = add_command(under, "push", push, "store a built file in the artifact repository")
    pushing.add_argument("file", metavar="FILE", type=Path, help="the built file")
    pushing.add_argument("--name", help="by default taken from the file name")
    pushing.add_argument("--version", help="by default taken from the file name")
    add_command(under, "list", list_, "list the artifact repository")


def push(arguments: argparse.Namespace, output: Printer) -> int:
    """Store a file and print its name, version and digest."""
    repository = open_project(arguments).artifacts
    artifact = repository.push(arguments.file, name=arguments.name, version=arguments.version)
    output.result(f"{artifact.name}@{artifact.version} {artifact.digest}", artifact=artifact)
    return 0


def list_(arguments: argparse.Namespace, output: Printer) -> int:
    """List all artifacts."""
    artifacts = open_project(arguments).artifacts.entries()
    if output.as_json:
        output.data(artifacts=artifacts)
    elif not artifacts:
        output.say("no artifacts yet: a bake stores its recipe's artifact, as `artifact push` does")
    else:
        output.table(
            ("NAME", "VERSION", "DIGEST", "SIZE", "PUSHED", "FILE"),
            (
                (
                    artifact.name,
                    artifact.version,
                    short(artifact.digest),
                    size(artifact.size),
                    f"{since(artifact.pushed_at)} ago",
                    artifact.filename,
                )
                for artifact in artifacts
            ),
        )
    return 0
