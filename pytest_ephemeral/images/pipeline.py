"""Get the image of a recipe: find it by its key, or bake, verify, archive and record it."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path

from pytest_ephemeral.artifacts import Repository
from pytest_ephemeral.errors import (
    ArtifactError,
    BakeError,
    ConfigurationError,
    ImageChangedError,
    ImageInUseError,
    ImageMissingError,
    UnavailableError,
)
from pytest_ephemeral.images import artifact_build
from pytest_ephemeral.images import key as keys
from pytest_ephemeral.images.archives import Archives, baker_of, is_taken
from pytest_ephemeral.images.bake import Bake, BakePlan
from pytest_ephemeral.images.catalog import Catalog
from pytest_ephemeral.images.claim import hold_claim
from pytest_ephemeral.images.scratch import scratch_file
from pytest_ephemeral.images.signatures import SignaturePolicy
from pytest_ephemeral.models import Artifact, Image
from pytest_ephemeral.providers.abilities import SupportsEquivalents
from pytest_ephemeral.providers.protocol import UNKNOWN, Baker
from pytest_ephemeral.store import Store
from pytest_ephemeral.tables import BakeMode, KeepInStore, Recipe

Say = Callable[[str], None]


class Images:
    """The images of one project.

    Args:
        store: The store.
        artifacts: The artifact repository.
        root: The folder that the recipes' paths are relative to.
        require_signature: The file of a public key; images must be signed with that key.
        keep: The setting: which images to keep in the store.

    Attributes:
        catalog: The records of all images.
        signatures: Refuses images without the required signature.
    """

    def __init__(
        self,
        *,
        store: Store,
        artifacts: Repository,
        root: Path,
        require_signature: Path | None = None,
        keep: KeepInStore = "auto",
    ) -> None:
        self._store = store
        self._archives = Archives(store, root, keep)
        self._artifacts = artifacts
        self._root = root
        self.catalog = Catalog(store)
        self.signatures = SignaturePolicy(require_signature, self.catalog)

    def key(self, recipe: Recipe) -> str:
        """The key of a recipe's image, with the current inputs.

        Raises:
            ArtifactError: Its artifact can't be found.
            ConfigurationError: The recipe is wrong.
        """
        return self._plan(recipe).key

    def obtain(self, recipe: Recipe, *, mode: BakeMode, say: Say, live: Say | None = None) -> Image:
        """Get the image of a recipe, ready for use on this machine.

        Args:
            recipe: The recipe.
            mode: When to bake it: if it is ``missing``, ``always``, or ``never``.
            say: Receives progress, one line for each call.
            live: Receives each line of the install script's output.

        Raises:
            ImageMissingError: It is not baked, and ``mode`` forbids baking.
            ProvenanceError: It is not signed with the required key.
            ImageChangedError: Its content has changed since it was baked.
            ImageInUseError: It has to be baked again, but an environment runs from it.
            BakeError: The bake failed.
            ArtifactError: Its artifact can't be found or downloaded.
            ConfigurationError: The recipe is wrong.
        """
        if mode != "never":
            artifact_build.build_if_changed(recipe, self._root, say, live or say)
        artifact_build.warn_if_stale(recipe, self._root, say)
        image = self._obtain(self._plan(recipe), mode, say, live)
        self.signatures.check(image)
        return image

    def _obtain(self, plan: BakePlan, mode: BakeMode, say: Say, live: Say | None) -> Image:
        recipe = plan.recipe
        with _explain_os_errors(recipe.name):
            if mode != "always" and (image := self._find_existing(plan, say)):
                return self._verify_late(plan, image, say, live)
            if mode == "never":
                raise self._missing_error(plan)
            with hold_claim(self._store, plan.key, recipe.name, say):
                # Another process may have baked it while this one waited for the claim.
                if mode != "always" and (image := self._find_existing(plan, say)):
                    return image
                from pytest_ephemeral.images import provenance

                provenance.check_key(os.environ)
                fetched = None if plan.artifact is None else self._artifacts.fetch(plan.artifact)
                job = plan.job(fetched, say, live)
                bake = Bake(plan, job, self._archives, self.catalog)
                return bake.run(again=mode == "always")

    def prune(self, keep: int, in_use: Container[str]) -> list[Image]:
        """Remove old images with their content, archives and records.

        Args:
            keep: How many of the newest images of each name to keep.
            in_use: The keys of further images to keep; checked again before each removal.

        Returns:
            The removed images.
        """
        removed: list[Image] = []
        for _, named in groupby(self.catalog.entries(), key=lambda image: image.name):
            newest_first = sorted(named, key=lambda image: image.baked_at, reverse=True)
            old = newest_first[keep:]
            removed += [one for one in old if one.key not in in_use and self._remove(one)]
        return removed

    def export(self, image: Image, file: Path) -> None:
        """Write an image to a bundle.

        Raises:
            ImageMissingError: Its content is missing.
            ConfigurationError: It is a ``reference``, or the file can't be written.
        """
        from pytest_ephemeral.images import bundle

        if is_taken(image):
            raise ConfigurationError(
                f"the image {image.name!r} is a reference to {image.reference}, which "
                "is not kept in the store: copy that instead"
            )
        with _explain_os_errors(image.name), self._archives.open(image) as archive:
            bundle.write(file, image, archive)

    def import_(self, file: Path) -> Image:
        """Import a bundle into the store and the catalog.

        Raises:
            ConfigurationError: The file is not a bundle.
            ImageChangedError: The bundle is damaged, or the catalog has other content for its key.
        """
        from pytest_ephemeral.images import bundle

        with _explain_os_errors(file.name), scratch_file() as archive:
            image = bundle.read(file, archive)
            self._refuse_other_bytes(image)
            if image.archive is not None:
                self._archives.add(image, archive)
            else:  # its own store had no archive either
                _unpack_if_missing(image, archive)
        self.catalog.record(image)
        return image

    def _refuse_other_bytes(self, image: Image) -> None:
        """Refuse other content for a known key: stages and approvals refer to the content."""
        for known in self.catalog.entries():
            if known.key == image.key and known.digest != image.digest:
                raise ImageChangedError(
                    f"{image.name} ({image.key[:19]}…) is in the catalog as {known.name}, with "
                    f"other content: {known.digest} there, {image.digest} in the file. Nothing was "
                    "imported. If the file is the right one, remove the image from the catalog "
                    "first with `pytest-ephemeral images prune`"
                )

    def check(self, image: Image) -> None:
        """Verify that an image's content has not changed since it was baked.

        The content is in the store or, if not there, on this machine.

        Raises:
            ImageMissingError: Its content is missing.
            ImageChangedError: Its content has changed.
        """
        if image.archive is None:
            if not baker_of(image.provider).present(image):
                raise self._archives.missing_error(image)
            return
        with self._archives.open(image):
            pass  # ``open`` checks the digest

    # -- from recipe to image ----------------------------------------------------------------

    def _plan(self, recipe: Recipe) -> BakePlan:
        baker = baker_of(recipe.provider)
        artifact = None
        if (wanted := artifact_build.find_built(recipe, self._root)) is not None:
            artifact = self._find_artifact(recipe.name, wanted)
        inputs = keys.inputs(
            recipe,
            self._root,
            artifact=None if artifact is None else artifact.digest,
            resolved=baker.resolve(recipe, self._root),
        )
        inputs = self._fill_unknown_inputs(recipe.name, inputs)
        return BakePlan(recipe, baker, artifact, inputs, keys.key(inputs), self._root)

    def _find_artifact(self, name: str, wanted: str) -> Artifact:
        try:
            return self._artifacts.find(wanted, self._root)
        except ArtifactError as error:
            raise type(error)(f"images.{name}.artifact: {error}") from error

    def _fill_unknown_inputs(self, name: str, inputs: dict[str, str]) -> dict[str, str]:
        """Fill in unknown inputs from the newest image whose other inputs are the same."""
        unknown = [one for one, value in inputs.items() if value == UNKNOWN]
        for image in reversed(self.catalog.entries() if unknown else []):
            then = {**inputs, **{one: image.inputs.get(one, UNKNOWN) for one in unknown}}
            if image.name == name and image.inputs == then:
                return then
        return inputs

    def _find_existing(self, plan: BakePlan, say: Say) -> Image | None:
        """Find an image in the catalog, and bring it to this machine; None if there is none."""
        image = self.catalog.find(plan.recipe.name, plan.key)
        if image is not None:
            return self._bring(plan, image, say)
        for other in self._find_equivalent(plan):
            try:
                if found := self._bring(plan, other, say):
                    return found
            except (ImageChangedError, UnavailableError) as error:
                say(f"{other.name} as baked by {other.baked_by} can't be used here: {error}")
        return None

    def _find_equivalent(self, plan: BakePlan) -> list[Image]:
        """Images with other inputs that the provider accepts instead, newest first."""
        baker = plan.baker
        if not isinstance(baker, SupportsEquivalents):
            return []
        named = [image for image in self.catalog.entries() if image.name == plan.recipe.name]
        return [image for image in reversed(named) if baker.serves(image, plan.inputs)]

    def _bring(self, plan: BakePlan, image: Image | None, say: Say) -> Image | None:
        """Bring an image of the catalog to this machine; None if its content is missing."""
        if image is None or plan.baker.present(image):
            return image
        with plan.baker.exclusive(image.key, f"fetching {image.name}", say):
            image = self.catalog.find(image.name, image.key)  # it may have been baked again
            if image is None or plan.baker.present(image):
                return image
            if not self._archives.has(image):
                return None
            say(f"fetching {image.name}, baked by {image.baked_by}")
            with self._archives.open(image) as archive:
                plan.baker.unpack(image, archive)
        return image

    def _verify_late(self, plan: BakePlan, image: Image, say: Say, live: Say | None) -> Image:
        """Verify an existing image, if its recipe has verify commands that it has not passed."""
        if set(plan.recipe.verify) <= set(image.verified):
            return image
        say(f"verifying {image.name}: its recipe has verify commands that have not been run on it")
        fetched = None if plan.artifact is None else self._artifacts.fetch(plan.artifact)
        plan.baker.verify(plan.job(fetched, say, live), image)
        return self.catalog.mark_verified(image, plan.recipe.verify)

    def _missing_error(self, plan: BakePlan) -> ImageMissingError:
        name, short = plan.recipe.name, plan.key[:19]
        problem = (
            f"the image {name!r} ({short}…) is not baked, and `--ephemeral-bake never` forbids "
            "baking"
        )
        if known := self.catalog.find(name, plan.key):
            return self._archives.missing_error(known)
        if latest := self.catalog.latest(name):
            changed = "; ".join(keys.differences(latest.inputs, plan.inputs))
            problem += f". The newest image of that name has other inputs: {changed}"
        else:
            problem += f". No image of that name is in the store {self._store.url}"
        return ImageMissingError(
            f"{problem}. Bake it first with `pytest-ephemeral bake {name}`, into the same store"
        )

    def _remove(self, image: Image) -> bool:
        """Remove an image, except content that another record has; False if it is in use."""
        others = [other for other in self.catalog.entries() if other != image]
        if not any(other.key == image.key for other in others):
            try:
                baker_of(image.provider).remove(image)
            except ImageInUseError:
                return False  # an environment of another store uses it
        if image.archive and not any(other.archive == image.archive for other in others):
            self._archives.remove(image)
        self.catalog.forget(image)
        return True


def _unpack_if_missing(image: Image, archive: Path) -> None:
    """Unpack an image on this machine, unless it is intact: environments may run from it."""
    baker = baker_of(image.provider)
    if _is_whole(baker, image):
        return
    with baker.exclusive(image.key, f"importing {image.name}", lambda _: None):
        if not _is_whole(baker, image):  # another process may have unpacked it
            baker.unpack(image, archive)


def _is_whole(baker: Baker, image: Image) -> bool:
    with suppress(ImageChangedError):
        return baker.present(image)
    return False


@contextmanager
def _explain_os_errors(name: str) -> Iterator[None]:
    """Explain errors of the operating system, such as a full disk or missing permissions."""
    try:
        yield
    except OSError as error:
        raise BakeError(
            f"the image {name!r} can't be baked or fetched: {error}. Check that there is space "
            f"(`df -h {error.filename or '.'}`), and that this user can write there"
        ) from error
