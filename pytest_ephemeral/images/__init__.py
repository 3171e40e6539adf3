"""Images: from a recipe to a baked image, here, exactly as it was baked."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import msgspec

from pytest_ephemeral import files, machine, providers
from pytest_ephemeral.artifacts import Repository
from pytest_ephemeral.errors import (
    BakeError,
    ConfigurationError,
    EphemeralError,
    ImageChangedError,
    ImageInUseError,
    ImageMissingError,
)
from pytest_ephemeral.images import key as keys
from pytest_ephemeral.images.catalog import Catalog
from pytest_ephemeral.images.claim import claimed
from pytest_ephemeral.models import Artifact, Image
from pytest_ephemeral.providers.abilities import SupportsCataloging
from pytest_ephemeral.providers.protocol import UNKNOWN, BakeJob, Baker
from pytest_ephemeral.store import Store
from pytest_ephemeral.tables import Recipe

BakeMode = Literal["missing", "always", "never"]
Say = Callable[[str], None]


class _Wanted(msgspec.Struct, frozen=True):
    """An image that is asked for."""

    recipe: Recipe
    baker: Baker
    artifact: Artifact | None
    inputs: dict[str, str]
    key: str


class Images:
    """The images of one project.

    Args:
        store: Where records and archives are.
        artifacts: Where what is installed comes from.
        root: What the recipes' paths are relative to.

    Attributes:
        catalog: The record of every image.
    """

    def __init__(self, *, store: Store, artifacts: Repository, root: Path) -> None:
        self._store = store
        self._artifacts = artifacts
        self._root = root
        self.catalog = Catalog(store)

    def key(self, recipe: Recipe) -> str:
        """The key of the image that the recipe gives now.

        Raises:
            ArtifactError: Its artifact can't be had.
            ConfigurationError: The recipe can't be right.
        """
        return self._wanted(recipe).key

    def obtain(self, recipe: Recipe, *, mode: BakeMode, say: Say, live: Say | None = None) -> Image:
        """The image of a recipe, here and unchanged.

        Args:
            recipe: What it is made from.
            mode: Whether to bake it if it is ``missing``, ``always``, or ``never``.
            say: Told what is going on, a line a call.
            live: Given each line that the install script prints.

        Raises:
            ImageMissingError: It is not baked, and was not to be.
            ImageChangedError: It is here, or in the store, but not as it was baked.
            ImageInUseError: It was to be baked again, and an environment runs from it.
            BakeError: It can't be baked.
            ArtifactError: Its artifact can't be had.
            ConfigurationError: The recipe can't be right.
        """
        wanted = self._wanted(recipe)
        with _explained(recipe.name):
            if mode != "always" and (image := self._existing(wanted, say)):
                return image
            if mode == "never":
                raise self._missing(wanted)
            with claimed(self._store, wanted.key, recipe.name, say):
                # Whoever was waited for has baked it, unless that failed.
                if mode != "always" and (image := self._existing(wanted, say)):
                    return image
                return self._make(wanted, again=mode == "always", say=say, live=live)

    def prune(self, keep: int, in_use: Collection[str]) -> list[Image]:
        """Remove old images: content, archive, and record.

        Args:
            keep: How many of each name to keep, the newest.
            in_use: Keys of images that are kept all the same.

        Returns:
            What was removed.
        """
        removed: list[Image] = []
        for _, named in groupby(self.catalog.entries(), key=lambda image: image.name):
            newest_first = sorted(named, key=lambda image: image.baked_at, reverse=True)
            old = [image for image in newest_first[keep:] if image.key not in in_use]
            removed += [image for image in old if self._remove(image)]
        return removed

    def export(self, image: Image, file: Path) -> None:
        """Write an image into one file that holds all of it.

        Raises:
            ImageMissingError: Its content can't be had.
            ConfigurationError: It was taken as it is, or the file can't be written.
        """
        from pytest_ephemeral.images import bundle

        if image.archive is None:
            raise ConfigurationError(
                f"the image {image.name!r} was taken as it is from {image.reference}, and is not "
                "kept here: copy that instead"
            )
        with _explained(image.name), self._archive_of(image) as archive:
            bundle.write(file, image, archive)

    def import_(self, file: Path) -> Image:
        """Put an image from such a file into the store and the catalog.

        Raises:
            ConfigurationError: It is no such file.
            ImageChangedError: It is not what it says it is.
        """
        from pytest_ephemeral.images import bundle

        with _explained(file.name), _scratch() as archive:
            image = bundle.read(file, archive)
            self._store.upload(_archive_path(image), archive)
        self.catalog.record(image)
        return image

    def check(self, image: Image) -> None:
        """Make sure that an image's content is what was baked, in the store or else here.

        Raises:
            ImageMissingError: Its content can't be had.
            ImageChangedError: It is not.
        """
        if image.archive is None:
            if not _baker(image.provider).present(image):
                raise self._gone(image)
            return
        with self._archive_of(image):
            pass  # it is checked on its way out

    # -- from recipe to image ----------------------------------------------------------------

    def _wanted(self, recipe: Recipe) -> _Wanted:
        baker = _baker(recipe.provider)
        artifact = None
        if recipe.artifact is not None:
            artifact = self._artifacts.find(recipe.artifact, self._root)
        inputs = keys.inputs(
            recipe,
            self._root,
            artifact=None if artifact is None else artifact.digest,
            resolved=baker.resolve(recipe, self._root),
        )
        inputs = self._as_last_baked(recipe.name, inputs)
        return _Wanted(recipe, baker, artifact, inputs, keys.key(inputs))

    def _as_last_baked(self, name: str, inputs: dict[str, str]) -> dict[str, str]:
        """The inputs, what is unknown among them as in the newest image made from the same else."""
        unknown = [one for one, value in inputs.items() if value == UNKNOWN]
        for image in reversed(self.catalog.entries() if unknown else []):
            then = {**inputs, **{one: image.inputs.get(one, UNKNOWN) for one in unknown}}
            if image.name == name and image.inputs == then:
                return then
        return inputs

    def _existing(self, wanted: _Wanted, say: Say) -> Image | None:
        """The image as the catalog has it, brought here if it is not."""
        image = self.catalog.find(wanted.recipe.name, wanted.key)
        if image is None or wanted.baker.present(image):
            return image
        with wanted.baker.exclusive(wanted.key, f"bringing {image.name} here", say):
            image = self.catalog.find(wanted.recipe.name, wanted.key)  # while waiting: baked again
            if image is None or wanted.baker.present(image):
                return image
            if not self._store.has(_archive_path(image)):
                return None
            say(f"bringing {image.name} here, baked by {image.baked_by}")
            with self._archive_of(image) as archive:
                wanted.baker.unpack(image, archive)
        return image

    def _missing(self, wanted: _Wanted) -> ImageMissingError:
        name, short = wanted.recipe.name, wanted.key[:19]
        said = f"the image {name!r} ({short}…) is not baked, and nothing is to be baked"
        latest = self.catalog.latest(name)
        if latest is not None and latest.key == wanted.key:
            said = (
                f"the image {name!r} ({short}…) is in the catalog, but its content is neither "
                f"here nor in the store {self._store.url}"
            )
        elif latest is not None:
            changed = "; ".join(keys.differences(latest.inputs, wanted.inputs))
            said += f". The newest one of that name is made from something else: {changed}"
        else:
            said += f". None of that name is in the store {self._store.url}"
        return ImageMissingError(
            f"{said}. Bake it first with `pytest-ephemeral bake {name}`, into the same store"
        )

    def _make(self, wanted: _Wanted, *, again: bool, say: Say, live: Say | None) -> Image:
        """Bake it, verify it, put its content into the store, and then record it."""
        from pytest_ephemeral.images import provenance

        provenance.check_key(os.environ)
        started = time.monotonic()
        name, baker = wanted.recipe.name, wanted.baker
        job = self._job(wanted, say, live)
        if not again and (image := self._adopted(wanted, job, started)):
            return image
        with baker.exclusive(wanted.key, f"baking {name}", say) as descriptors:
            if not again and (image := self._adopted(wanted, job, started)):
                return image
            say(f"baking {name} ({wanted.key[:19]}…)")
            try:
                image = baker.bake(msgspec.structs.replace(job, descriptors=descriptors))
                baker.verify(job, image)
                return self._kept(wanted, job, image, started)
            except BaseException as error:
                _discard(baker, wanted.key, error)
                raise

    def _kept(self, wanted: _Wanted, job: BakeJob, image: Image, started: float) -> Image:
        """Record it; what is whole, and yet no store can take it, goes.

        Interrupted, it stays: the next bake adopts it.
        """
        try:
            return self._finish(wanted, job, image, started)
        except Exception:
            with suppress(EphemeralError):
                if self.catalog.find(image.name, image.key) is None:
                    wanted.baker.remove(image)
            raise

    def _adopted(self, wanted: _Wanted, job: BakeJob, started: float) -> Image | None:
        """What a bake for another store, or under another name, has left on this machine."""
        image = wanted.baker.adopt(job)
        if image is None:
            return None
        job.say(f"{image.name} is on this machine already: it is verified and recorded")
        wanted.baker.verify(job, image)
        return self._finish(wanted, job, image, started)

    def _job(self, wanted: _Wanted, say: Say, live: Say | None) -> BakeJob:
        artifact = wanted.artifact
        name, digits = wanted.recipe.name, wanted.key.removeprefix("sha256:")[:12]
        log = f"{name}-{digits}-{datetime.now(UTC):%Y%m%dT%H%M%S}.log"
        return BakeJob(
            recipe=wanted.recipe,
            key=wanted.key,
            root=self._root,
            artifact=None if artifact is None else self._artifacts.fetch(artifact),
            log=machine.state_directory() / "bakes" / log,
            say=say,
            live=live,
        )

    def _finish(self, wanted: _Wanted, job: BakeJob, image: Image, started: float) -> Image:
        from pytest_ephemeral.images import provenance

        if wanted.recipe.reference is None:
            job.say("putting it into the store")
            image = self._archived(wanted.baker, image)
        owner = machine.this_owner("bake")
        image = msgspec.structs.replace(
            image,
            artifact=wanted.inputs.get("artifact"),
            inputs=wanted.inputs,
            seconds=round(time.monotonic() - started, 3),
            baked_by=f"{owner.user}@{owner.host}",
        )
        said = provenance.state(
            image, wanted.recipe, wanted.artifact, root=self._root, environ=os.environ
        )
        image = msgspec.structs.replace(image, provenance=said)
        before = self.catalog.find(image.name, image.key)
        self.catalog.record(image)
        if isinstance(wanted.baker, SupportsCataloging):
            wanted.baker.mark_cataloged(image, before)
        return image

    # -- archives ----------------------------------------------------------------------------

    def _archived(self, baker: Baker, image: Image) -> Image:
        with _scratch() as archive:
            baker.pack(image, archive)
            image = msgspec.structs.replace(image, archive=files.digest_of(files.chunks(archive)))
            self._store.upload(_archive_path(image), archive)
        return image

    @contextmanager
    def _archive_of(self, image: Image) -> Iterator[Path]:
        """An image's archive as a file, checked: from the store, or packed from what is here."""
        with _scratch() as archive:
            if self._store.has(_archive_path(image)):
                self._store.download(_archive_path(image), archive)
            elif _baker(image.provider).present(image):
                _baker(image.provider).pack(image, archive)
            else:
                raise self._gone(image)
            found = files.digest_of(files.chunks(archive))
            if found != image.archive:
                raise ImageChangedError(
                    f"the archive of the image {image.name!r} in the store {self._store.url}, "
                    f"{_archive_path(image)}, is now {found}. Remove it, and bake the image again "
                    f"with `pytest-ephemeral bake {image.name} --force`"
                )
            yield archive

    def _gone(self, image: Image) -> ImageMissingError:
        return ImageMissingError(
            f"the content of the image {image.name!r} ({image.key[:19]}…) is neither here nor in "
            f"the store {self._store.url}. Bake it again with "
            f"`pytest-ephemeral bake {image.name} --force`"
        )

    def _remove(self, image: Image) -> bool:
        """Remove an image; what another record refers to stays. Whether it could be removed."""
        others = [other for other in self.catalog.entries() if other != image]
        if not any(other.key == image.key for other in others):
            try:
                _baker(image.provider).remove(image)
            except ImageInUseError:
                return False  # by an environment of another store
        if image.archive and not any(other.archive == image.archive for other in others):
            self._store.delete(_archive_path(image))
        self.catalog.forget(image)
        return True


def _discard(baker: Baker, key: str, error: BaseException) -> None:
    """Remove what was half-made; the error says so when that fails too, and stays what it was."""
    try:
        baker.discard(key)
    except (EphemeralError, TimeoutError) as left:
        error.add_note(
            f"What was half-made could not be removed: {left}. `pytest-ephemeral reap` removes it"
        )


def _baker(provider: str) -> Baker:
    baker: Any = providers.load(provider)
    if not isinstance(baker, Baker):
        raise ConfigurationError(
            f"the provider {provider!r} bakes no images: its templates say all themselves"
        )
    return baker


def _archive_path(image: Image) -> str:
    """Named by its digest; what was taken as it is has none, and no store has ``images/none``."""
    return f"images/{(image.archive or 'none').removeprefix('sha256:')}"


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn the system's errors into ours: a full disk, a folder that is not this user's."""
    try:
        yield
    except OSError as error:
        raise BakeError(
            f"the image {name!r} can't be made or brought here: {error}. See that there is room "
            f"(`df -h {error.filename or '.'}`), and that this user may write there"
        ) from error


@contextmanager
def _scratch() -> Iterator[Path]:
    """A file for an archive on its way; those of processes that were killed are swept."""
    folder = machine.state_directory() / "transfers"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        pid = left.name.partition("-")[0]
        if pid.isdigit() and not machine.process_started(int(pid)):
            left.unlink(missing_ok=True)
    file = folder / f"{os.getpid()}-{os.urandom(4).hex()}"
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)
