"""An opened project: its configuration, store, artifact repository, images and ledger."""

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
    """Everything that is the same for all runs of one project."""

    config: Config
    store: Store
    artifacts: Repository
    images: Images
    ledger: Ledger

    @classmethod
    def open(cls, file: Path | None, start: Path) -> Project:
        """Open the project that a configuration file describes. Nothing is created yet.

        Args:
            file: The configuration file; None to look for one from ``start`` upwards.
            start: The folder to begin at.

        Raises:
            ConfigurationError: There is none, or it is wrong.
        """
        found = file or discovery.find(start)
        if found is None:
            raise ConfigurationError(_none_found(start))
        return cls.of(config.load(found))

    @classmethod
    def of(cls, settings: Config) -> Project:
        """The project of a configuration that has been read."""
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
