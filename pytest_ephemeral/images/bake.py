"""One bake: run it, verify it, store its content, and record it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from pytest_ephemeral import machine
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.images.archives import Archives
from pytest_ephemeral.images.catalog import Catalog
from pytest_ephemeral.models import Artifact, Image
from pytest_ephemeral.providers.abilities import SupportsCataloging
from pytest_ephemeral.providers.protocol import BakeJob, Baker
from pytest_ephemeral.tables import Recipe


class BakePlan(msgspec.Struct, frozen=True):
    """An image to bake, with everything that determines its content.

    Attributes:
        artifact: The artifact to install; None if the recipe has none.
        inputs: The inputs of the key, by name.
        key: The digest of the inputs.
        root: The folder that the recipe's paths are relative to.
    """

    recipe: Recipe
    baker: Baker
    artifact: Artifact | None
    inputs: dict[str, str]
    key: str
    root: Path

    def job(
        self, artifact: Path | None, say: Callable[[str], None], live: Callable[[str], None] | None
    ) -> BakeJob:
        """Make the job for the provider.

        Args:
            artifact: The artifact's file, with a verified digest.
            say: Receives progress.
            live: Receives each line of the install script's output.
        """
        digits = self.key.removeprefix("sha256:")[:12]
        log = f"{self.recipe.name}-{digits}-{datetime.now(UTC):%Y%m%dT%H%M%S}.log"
        return BakeJob(
            recipe=self.recipe,
            key=self.key,
            root=self.root,
            artifact=artifact,
            log=machine.state_directory() / "bakes" / log,
            say=say,
            live=live,
        )


class Bake:
    """One bake of an image.

    Args:
        plan: The image to bake.
        job: The job for the provider.
        archives: The archives in the store.
        catalog: The catalog.
    """

    def __init__(self, plan: BakePlan, job: BakeJob, archives: Archives, catalog: Catalog) -> None:
        self._plan = plan
        self._job = job
        self._archives = archives
        self._catalog = catalog
        self._started = time.monotonic()

    def run(self, *, again: bool) -> Image:
        """Bake the image, unless an earlier bake has left it on this machine.

        Args:
            again: Whether to bake it in any case.

        Returns:
            The image, as recorded in the catalog.

        Raises:
            BakeError: The bake failed. Nothing is recorded.
        """
        name, baker = self._plan.recipe.name, self._plan.baker
        if not again and (image := self._adopt()):
            return image
        with baker.exclusive(self._plan.key, f"baking {name}", self._job.say) as descriptors:
            if not again and (image := self._adopt()):
                return image
            self._job.say(f"baking {name} ({self._plan.key[:19]}…)")
            try:
                image = baker.bake(msgspec.structs.replace(self._job, descriptors=descriptors))
                baker.verify(self._job, image)
                return self._keep(image)
            except BaseException as error:
                _discard(baker, self._job, error)
                raise

    def _adopt(self) -> Image | None:
        """Record an image that this machine has already, from another store or name; or None."""
        image = self._plan.baker.adopt(self._job)
        if image is None:
            return None
        self._job.say(f"{image.name} is on this machine already: verifying and recording it")
        self._plan.baker.verify(self._job, image)
        return self._record(image)

    def _keep(self, image: Image) -> Image:
        """Record a new image; remove it if that fails.

        After an interrupt it is not removed, because the next bake can record it.
        """
        try:
            return self._record(image)
        except Exception:
            with suppress(EphemeralError):
                if self._catalog.find(image.name, image.key) is None:
                    self._plan.baker.remove(image)
            raise

    def _record(self, image: Image) -> Image:
        from pytest_ephemeral.images import provenance

        plan = self._plan
        if self._archives.is_wanted(msgspec.structs.replace(image, inputs=plan.inputs)):
            self._job.say("writing it to the store")
            image = self._archives.pack(plan.baker, image)
        owner = machine.this_owner("bake")
        image = msgspec.structs.replace(
            image,
            artifact=plan.inputs.get("artifact"),
            inputs=plan.inputs,
            verified=list(plan.recipe.verify),
            seconds=round(time.monotonic() - self._started, 3),
            baked_by=f"{owner.user}@{owner.host}",
        )
        statement = provenance.state(
            image, plan.recipe, plan.artifact, root=plan.root, environ=os.environ
        )
        image = msgspec.structs.replace(image, provenance=statement)
        predecessor = self._catalog.find(image.name, image.key)
        self._catalog.record(image)
        if isinstance(plan.baker, SupportsCataloging):
            plan.baker.mark_cataloged(image, predecessor)
        return image


def _discard(baker: Baker, job: BakeJob, error: BaseException) -> None:
    """Remove an incomplete image. If that fails, add a note to the original error."""
    try:
        baker.discard(job)
    except (EphemeralError, TimeoutError) as left:
        error.add_note(
            f"The incomplete image could not be removed: {left}. `pytest-ephemeral reap` removes it"
        )
