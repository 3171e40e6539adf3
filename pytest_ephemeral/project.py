"""Open a project: its configuration, store, artifact repository, images and ledger."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pytest_ephemeral import config, discovery
from pytest_ephemeral.artifacts import Repository, open_repository
from pytest_ephemeral.config import Config
from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.images.pipeline import Images
from pytest_ephemeral.ledger import Ledger
from pytest_ephemeral.store import Store, open_store


class Project(msgspec.Struct, frozen=True):
    """The objects that all runs of one project share."""

    config: Config
    store: Store
    artifacts: Repository
    images: Images
    ledger: Ledger

    @classmethod
    def open(cls, file: Path | None, start: Path) -> Project:
        """Open the project of a configuration file. Creates no files.

        Args:
            file: The configuration file; None to search for one.
            start: The folder in which the search starts; see ``discovery.find``.

        Raises:
            ConfigurationError: No configuration was found, or it has an error.
        """
        found = file or discovery.find(start)
        if found is None:
            raise ConfigurationError(_none_found(start))
        return cls.of(config.load(found))

    @classmethod
    def of(cls, settings: Config) -> Project:
        """Make the project of a configuration."""
        store = open_store(settings.store, settings.root)
        artifacts = open_repository(settings.artifacts_repository, settings.root)
        images = Images(
            store=store,
            artifacts=artifacts,
            root=settings.root,
            require_signature=settings.require_signature,
            keep=settings.keep_in_store,
        )
        return cls(settings, store, artifacts, images, Ledger(store))


def _none_found(start: Path) -> str:
    text = f"no ephemeral.toml and no [tool.pytest-ephemeral] in {start} or a parent directory: "
    below = [str(file.relative_to(start)) for file in discovery.below(start)]
    if below:
        return f"{text}run it in the folder of {' or '.join(below)}, or name the file"
    return f"{text}write one with `pytest-ephemeral init`"
