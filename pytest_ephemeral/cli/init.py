"""``init``: a starter ephemeral.toml for what is found here."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_ephemeral.cli.arguments import add_verb
from pytest_ephemeral.cli.output import Output
from pytest_ephemeral.cli.starter import Found, look, starter
from pytest_ephemeral.config import FILE_NAME, find
from pytest_ephemeral.errors import ConfigurationError

if TYPE_CHECKING:
    from pytest_ephemeral.cli.arguments import Verbs


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    add_verb(verbs, "init", init, f"write a starter {FILE_NAME} for what is found here")


def init(arguments: argparse.Namespace, output: Output) -> int:
    """Write it, unless there is one already, and say what to do next."""
    folder = Path.cwd()
    path: Path = arguments.config or folder / FILE_NAME
    configured = find(folder)
    if arguments.config is None and configured is not None and configured.parent == folder:
        raise ConfigurationError(f"{configured} configures this folder already; it stays as it is")
    found = look(folder)
    _write(path, starter(found))
    if output.as_json:
        output.data(
            path=str(path),
            script=found.script and found.script.name,
            container=found.container and found.container.name,
            service=found.services and found.services.service,
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
        raise ConfigurationError(f"{path} is there already; it stays as it is") from None
    except OSError as error:
        raise ConfigurationError(f"{path} can't be written: {error.strerror}") from None


def _advice(found: Found) -> Iterator[str]:
    if script := found.script:
        yield f"It installs {script.project} and runs {script.name}. Build the wheel first:"
        yield "  python -m build --wheel"
    if found.container is not None and not Path(".dockerignore").exists():
        yield "Have a .dockerignore: of whatever is not in it, a change makes another image."
    yield "Then bring it up, and take it down again:"
    yield "  pytest-ephemeral up"
    yield "  pytest-ephemeral down --all"
    yield "Records and images' content go into .ephemeral/: keep it out of version control."
