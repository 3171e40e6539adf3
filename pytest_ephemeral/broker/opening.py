"""Reading a run's configuration, and asking what it will run on, before all else is loaded.

A container engine takes 20 ms to say which one it is, and half of what an owner process loads takes
as long.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pytest_ephemeral import config, discovery, providers
from pytest_ephemeral.broker.protocol import ClientProcess, Settings
from pytest_ephemeral.providers.abilities import SupportsEarlyContact

if TYPE_CHECKING:
    from pytest_ephemeral.project import Project


def open_project(settings: Settings, process: ClientProcess) -> Project | None:
    """Read the configuration; nothing is brought up before it is known what is needed.

    Args:
        settings: What the run is told to do.
        process: Whose variables and modules are used.

    Returns:
        The project; None for tests that run against a plain URL, which need none.

    Raises:
        EphemeralError: It is wrong.
    """
    adopt(process)
    file = settings.config or discovery.find(settings.start)
    plain = "://" in (settings.attach or "")
    if plain and file is None:
        return None
    found = None if file is None else config.load(file)
    if found is not None and settings.attach is None:
        threading.Thread(target=_contact, args=(found, settings), daemon=True).start()
    from pytest_ephemeral.project import Project

    return Project.open(file, settings.start) if found is None else Project.of(found)


def adopt(process: ClientProcess) -> None:
    """Take over a client's variables, and where it finds modules."""
    os.environ.clear()
    os.environ.update(process.environ)
    extend_path(process.path)


def extend_path(folders: Iterable[str]) -> None:
    """Find modules in these folders, too, as a client does: a provider of its project, say."""
    sys.path += [folder for folder in folders if folder and folder not in sys.path]


def find_default(project: Project, settings: Settings) -> str | None:
    """The template of tests that name none; None if there are several and no default."""
    config = project.config
    if settings.template is None and config.default_template is None:
        return next(iter(config.templates)) if len(config.templates) == 1 else None
    return config.template(settings.template).name


def _contact(found: config.Config, settings: Settings) -> None:
    """Have what the default template runs on asked what it is, which a launch needs to know."""
    template = found.templates.get(settings.template or found.default_template or "")
    if template is not None:
        provider = providers.load(template.provider)
        if isinstance(provider, SupportsEarlyContact):
            provider.contact()
