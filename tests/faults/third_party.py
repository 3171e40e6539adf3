"""A provider as a third party would write one: an environment is a folder under ``$FOLDERS``.

It guards nothing itself, so that whatever is cleaned up after a death was cleaned up for it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.protocol import Check, Order, Owned, Status
from pytest_ephemeral.tables import Template


class FolderProvider:
    """See the module."""

    name = "folders"
    template_type = Template
    recipe_type = None
    guards_itself = False
    forwards_ports = False

    def doctor(self) -> list[Check]:
        return [Check("folders", ok=True, detail="always there")]

    def launch(self, order: Order) -> Environment:
        _folder(order.environment.id).mkdir()
        return order.environment

    def status(self, environment: Environment) -> Status:
        return Status("running" if _folder(environment.id).is_dir() else "gone")

    def keep(self, environment: Environment) -> None:
        pass

    def extend(self, environment: Environment, expires_at: datetime | None) -> None:
        pass

    def destroy(self, environment: Environment) -> None:
        shutil.rmtree(_folder(environment.id), ignore_errors=True)

    def owned(self) -> Iterator[Owned]:
        return (Owned(folder.name, {}) for folder in Path(os.environ["FOLDERS"]).iterdir())

    def sweep(self, owned: Owned) -> None:
        shutil.rmtree(_folder(owned.id))


def _folder(id: str) -> Path:
    return Path(os.environ["FOLDERS"]) / id
