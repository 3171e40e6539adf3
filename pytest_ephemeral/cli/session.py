"""Open the project of a command, and make a lifecycle for the command."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_ephemeral import publishers
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.environments.progress import Progress
from pytest_ephemeral.project import Project

if TYPE_CHECKING:
    import pluggy


def open_project(arguments: argparse.Namespace) -> Project:
    """The project of ``--config``, or of the current folder.

    Raises:
        ConfigurationError: There is no configuration, or it is wrong.
    """
    return Project.open(arguments.config, Path.cwd())


@contextmanager
def lifecycle(project: Project, say: Callable[[Progress], None]) -> Iterator[Lifecycle]:
    """Make a lifecycle with its publishers, for a new run with one command.

    Args:
        project: The project with the environments.
        say: Called with each step of progress.

    Raises:
        ConfigurationError: A publisher's configuration refers to a variable that is not set.
    """
    run = f"cli-{secrets.token_hex(4)}"
    manager = plugin_manager()
    publishing = publishers.register(
        manager,
        project.config,
        os.environ,
        console=lambda text: print(text, file=sys.stderr, flush=True),  # stdout is for data
        warn=lambda text: say(Progress("pytest-ephemeral", "warning", text)),
    )
    made = Lifecycle(project, hooks=manager.hook, run=run, say=say)
    try:
        yield made
    finally:
        publishing.close()


def plugin_manager() -> pluggy.PluginManager:
    """Make a plugin manager with the plugins of the entry-point group ``pytest_ephemeral``."""
    import pluggy

    from pytest_ephemeral import hookspecs

    # pluggy's marker on the hook specifications has the project name "pytest".
    manager = pluggy.PluginManager("pytest")
    manager.add_hookspecs(hookspecs)
    manager.load_setuptools_entrypoints("pytest_ephemeral")
    return manager
