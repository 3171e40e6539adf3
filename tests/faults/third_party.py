"""A third party's provider, whose environments are folders in ``$FOLDERS``.

It has no guard, so that every clean-up after a kill was done for it. Files beside the folders
control it: with ``refuse`` it refuses every removal, or as many as the number in the file; with
``slow`` it accepts a removal, writes that into the file, and finishes when the file is gone; with
``coming`` a launch finishes only when the file is gone, even if it was cancelled.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from pytest_ephemeral.errors import DestroyError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.protocol import Check, Order, Owned, Status
from pytest_ephemeral.tables import Template


class FolderProvider:
    """The provider that the module describes."""

    name = "folders"
    template_type = Template
    recipe_type = None
    forwards_ports = False

    def doctor(self) -> list[Check]:
        return [Check("folders", ok=True, detail="always there")]

    def launch(self, order: Order) -> Environment:
        folder = _folder(order.environment.id)
        folder.mkdir()
        (folder / "log").write_text("it has printed this\n")
        while Path(os.environ["FOLDERS"], "coming").exists():
            time.sleep(0.02)
        return order.environment

    def status(self, environment: Environment) -> Status:
        folder = _folder(environment.id)
        if (folder / "exited").exists():
            return Status("exited", "it exited with status 7")
        return Status("running" if folder.is_dir() else "gone")

    def logs(self, environment: Environment, **_: object) -> str:
        return (_folder(environment.id) / "log").read_text()

    def log_mark(self, environment: Environment) -> str:
        return ""

    def log_files(self, environment: Environment) -> Mapping[str, str]:
        return {"it": self.logs(environment)}

    def keep(self, environment: Environment) -> None:
        pass

    def extend(self, environment: Environment, expires_at: datetime | None) -> None:
        pass

    def destroy(self, environment: Environment) -> None:
        self.destroy_in_stages(environment, lambda: None)

    def destroy_in_stages(self, environment: Environment, accepted: Callable[[], None]) -> None:
        if _is_refused(Path(os.environ["FOLDERS"], "refuse")):
            raise DestroyError(f"{environment.id}: access denied")
        accepted()
        slow = Path(os.environ["FOLDERS"], "slow")
        if slow.exists():
            slow.write_text("accepted")
        while slow.exists():
            time.sleep(0.02)
        shutil.rmtree(_folder(environment.id), ignore_errors=True)

    def list_owned(self) -> Iterator[Owned]:
        return (Owned(folder.name, {}) for folder in Path(os.environ["FOLDERS"]).iterdir())

    def sweep(self, owned: Owned) -> None:
        shutil.rmtree(_folder(owned.id))


def _is_refused(file: Path) -> bool:
    if not file.exists():
        return False
    if number := file.read_text():
        left = int(number) - 1
        file.write_text(str(left)) if left else file.unlink()
    return True


def _folder(id: str) -> Path:
    return Path(os.environ["FOLDERS"]) / id
