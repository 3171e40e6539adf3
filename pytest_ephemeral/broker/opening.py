"""Read a run's configuration, and contact its default provider, before the other imports.

A container engine takes about 20 ms to answer its first request. Half of the owner process's
imports take as long, so both happen at the same time.
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
    """Read the configuration. No environment is brought up.

    Args:
        settings: The settings of the run.
        process: The client's variables and module folders, which this process takes over.

    Returns:
        The project; None if the tests use a URL and there is no configuration.

    Raises:
        EphemeralError: The configuration is missing or wrong.
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
    """Take over a client's environment variables and module folders."""
    os.environ.clear()
    os.environ.update(process.environ)
    extend_path(process.path)


def extend_path(folders: Iterable[str]) -> None:
    """Append folders to ``sys.path``, for modules of the project such as a provider of its own."""
    sys.path += [folder for folder in folders if folder and folder not in sys.path]


def find_default(project: Project, settings: Settings) -> str | None:
    """The template of tests that name none; None if there are several and no default."""
    config = project.config
    if settings.template is None and config.default_template is None:
        return next(iter(config.templates)) if len(config.templates) == 1 else None
    return config.template(settings.template).name


def _contact(found: config.Config, settings: Settings) -> None:
    """Contact the provider of the default template. A launch needs the answer."""
    template = found.templates.get(settings.template or found.default_template or "")
    if template is not None:
        provider = providers.load(template.provider)
        if isinstance(provider, SupportsEarlyContact):
            provider.contact()
