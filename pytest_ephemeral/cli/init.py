"""``init``: write a starter ephemeral.toml for the project in the current folder."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_ephemeral.cli.arguments import add_command
from pytest_ephemeral.cli.detect import Found, look
from pytest_ephemeral.cli.output import Printer
from pytest_ephemeral.cli.source_trees import SourceTree
from pytest_ephemeral.cli.starter import starter
from pytest_ephemeral.discovery import FILE_NAME, find
from pytest_ephemeral.errors import ConfigurationError

if TYPE_CHECKING:
    from pytest_ephemeral.cli.arguments import Subcommands


def add_to(commands: Subcommands) -> None:
    """Add the command."""
    add_command(commands, "init", init, f"write a starter {FILE_NAME} for this project")


def init(arguments: argparse.Namespace, output: Printer) -> int:
    """Write the file, unless it exists already, and print the next steps."""
    folder = Path.cwd()
    path: Path = arguments.config or folder / FILE_NAME
    configured = find(folder)
    if arguments.config is None and configured is not None and configured.parent == folder:
        raise ConfigurationError(f"{configured} already exists: left unchanged")
    found = look(folder)
    _write(path, starter(found))
    if output.as_json:
        output.data(
            path=str(path),
            script=found.script and found.script.name,
            container=found.container and found.container.name,
            service=found.services and found.services.service,
            source=found.source and found.source.kind,
            inner=sorted(found.inner),
        )
    else:
        output.line(str(path))
    for line in _advice(found):
        output.say(line)
    return 0


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigurationError(f"{path} already exists: left unchanged") from None
    except OSError as error:
        raise ConfigurationError(f"{path} can't be written: {error.strerror}") from None


def _advice(found: Found) -> Iterator[str]:
    if found.script is not None:
        yield f"Recognised: {found.script.project}, with the console script {found.script.name}."
    for source in (found.source, *found.inner.values()):
        if isinstance(source, SourceTree):
            yield f"Recognised: {source.kind}."
            yield from source.notes
    if found.services is not None:
        yield f"Recognised: {found.services.file}."
    elif found.container is not None:
        yield "Recognised: Dockerfile."
    if found.container is not None and not Path(".dockerignore").exists():
        yield "Write a .dockerignore: changing any file that is not listed triggers a rebuild."
    if found == Found():
        yield "No project was recognised: the file has an example that works."
    yield "Bring an environment up, and destroy it:"
    yield "  pytest-ephemeral up"
    yield "  pytest-ephemeral down --all"
