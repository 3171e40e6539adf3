"""``artifact``: the files that images are baked from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_ephemeral.cli.arguments import add_group, add_verb
from pytest_ephemeral.cli.output import Output, short, since, size
from pytest_ephemeral.cli.session import open_project

if TYPE_CHECKING:
    from pytest_ephemeral.cli.arguments import Verbs


def add_to(verbs: Verbs) -> None:
    """Add the noun and its verbs."""
    under = add_group(verbs, "artifact", "push and list built files")
    pushing = add_verb(under, "push", push, "keep a built file in the artifact repository")
    pushing.add_argument("file", metavar="FILE", type=Path)
    pushing.add_argument("--name", help="by default what the file's name says")
    pushing.add_argument("--version", help="by default what the file's name says")
    add_verb(under, "list", list_, "list what is in the artifact repository")


def push(arguments: argparse.Namespace, output: Output) -> int:
    """Keep a file, and print what it is called from now on."""
    repository = open_project(arguments).artifacts
    artifact = repository.push(arguments.file, name=arguments.name, version=arguments.version)
    if output.as_json:
        output.data(artifact=artifact)
    else:
        output.line(f"{artifact.name}@{artifact.version} {artifact.digest}")
    return 0


def list_(arguments: argparse.Namespace, output: Output) -> int:
    """List all artifacts."""
    artifacts = open_project(arguments).artifacts.entries()
    if output.as_json:
        output.data(artifacts=artifacts)
    elif not artifacts:
        output.say("no artifacts yet: a bake pushes what its recipe names, as `artifact push` does")
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
