"""Stages: the outcome of each test run for each image that it used.

``stages/KEY/STAGE/RUN.json`` in the store; what is recorded is never changed.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Final

import msgspec

from pytest_ephemeral.models import ImageReference, Model, decode, encode
from pytest_ephemeral.store import Store

FOLDER: Final = "stages/"


class Stage(Model, frozen=True, kw_only=True):
    """The outcome of one test run for one image.

    Attributes:
        stage: Its name, as ``--ephemeral-stage`` gave it.
        run: The run's id.
        image: The image's key.
        digest: The image's bytes, which are what was tested; empty in records of older versions.
        environments: The ids of those that ran it.
        tests: How many passed, failed and were skipped.
        exit_status: pytest's.
        revision: The commit that the tests were taken from.
        ci: The CI's name, and where it shows the build; empty outside of any.
        report: The digest of the run's report.
    """

    version: int = 1
    stage: str
    run: str
    image: str = ""
    digest: str = ""
    environments: list[str] = msgspec.field(default_factory=list)
    tests: dict[str, int] = msgspec.field(default_factory=dict)
    exit_status: int
    finished_at: datetime
    revision: str = ""
    ci: str = ""
    ci_url: str = ""
    report: str = ""

    @property
    def problem(self) -> str:
        """Why it has not passed; empty when it has."""
        if self.exit_status:
            return f"failed (run {self.run}, exit status {self.exit_status})"
        return "" if self.tests.get("passed") else f"ran no test that passed (run {self.run})"


def record(store: Store, stage: Stage) -> None:
    """Record an outcome.

    Raises:
        StoreError: The store can't be written.
    """
    store.create(_path(stage), encode(stage))


def list_stages(store: Store, key: str) -> list[Stage]:
    """All outcomes under an image's key, oldest first. Broken records are left out."""
    found = []
    for path, data in store.records(_folder(key)):
        with suppress(msgspec.MsgspecError):
            stage = decode(data, Stage)
            if _path(stage) == path:
                found.append(stage)
    return sorted(found, key=lambda stage: stage.finished_at)


def latest(store: Store, image: ImageReference) -> dict[str, Stage]:
    """The last run of each stage against an image's exact content, by the stage's name.

    A later failure counts. What was recorded of other bytes with the same key does not: two bakes
    of the same inputs may differ.
    """
    return {
        stage.stage: stage
        for stage in list_stages(store, image.key)
        if stage.digest and stage.digest == image.digest
    }


def _path(stage: Stage) -> str:
    return f"{_folder(stage.image)}{stage.stage}/{stage.run}.json"


def _folder(key: str) -> str:
    return f"{FOLDER}{key.rpartition(':')[2]}/"
