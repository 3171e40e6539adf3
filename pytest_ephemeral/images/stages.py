"""Stages: the outcome of each test run for each image that it used.

A record is ``stages/KEY/STAGE/RUN.json`` in the store. Records are never changed.
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
        stage: The stage's name, from ``--ephemeral-stage``.
        run: The run's id.
        image: The image's key.
        digest: The digest of the tested image; empty in records of older versions.
        environments: The ids of the environments that ran the image.
        tests: How many tests passed, failed and were skipped.
        exit_status: pytest's exit status.
        revision: The commit of the tests.
        ci: The name of the CI system; empty outside of CI.
        ci_url: The URL of the CI build; empty outside of CI.
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
        """Why it has not passed; empty if it has."""
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
    """All outcomes for an image's key, oldest first. Records that can't be read are left out."""
    found = []
    for path, data in store.records(_folder(key)):
        with suppress(msgspec.MsgspecError):
            stage = decode(data, Stage)
            if _path(stage) == path:
                found.append(stage)
    return sorted(found, key=lambda stage: stage.finished_at)


def latest(store: Store, image: ImageReference) -> dict[str, Stage]:
    """The last outcome of each stage for an image's exact content, by the stage's name.

    A failure replaces an earlier success. Outcomes for the same key with another digest are left
    out: two bakes of the same inputs may differ.
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
