"""Bake a container image: from a Dockerfile, from a base and an install script, or by reference.

An image gets its name after it is verified. The catalog has its id, which is the digest of its
configuration, and so covers every layer. The name is for people, and keeps the engine from pruning
the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from pytest_ephemeral import files, labels
from pytest_ephemeral.errors import (
    BakeError,
    ConfigurationError,
    EphemeralError,
    ImageChangedError,
    ImageInUseError,
)
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers.abilities import LayerSpan
from pytest_ephemeral.providers.bake_log import BakeLog
from pytest_ephemeral.providers.docker import (
    archive,
    bake_commands,
    bake_watchdog,
    bases,
    build,
    buildx,
    endpoint,
    errors,
    image_store,
    quarantine,
    registry,
)
from pytest_ephemeral.providers.docker.build_context import Context
from pytest_ephemeral.providers.docker.engine import (
    TAR_TYPE,
    Engine,
    EngineError,
    NoEngineError,
    json_lines,
)
from pytest_ephemeral.providers.docker.image_store import PULL, tag_of
from pytest_ephemeral.providers.docker.tables import DockerRecipe
from pytest_ephemeral.providers.protocol import UNKNOWN, BakeJob
from pytest_ephemeral.tables import Recipe

ARTIFACT: Final = labels.PREFIX + "artifact"
RECIPE: Final = labels.PREFIX + "recipe"

_CONFLICT: Final = 409


class DockerBaker:
    """The part of the docker provider that bakes images; see ``Baker``."""

    def resolve(self, recipe: Recipe, root: Path) -> Mapping[str, str]:
        """The digests of the build context and of the base images."""
        recipe, engine = _recipe(recipe), endpoint.find()
        engine.ping()  # fails sooner than other calls if the engine does not answer
        if recipe.reference is not None:
            return {"content": bases.resolve_digest(engine, recipe.reference) or UNKNOWN}
        if recipe.context is None:
            named, found = [recipe.base or ""], {}
        else:
            context = Context.at(root / recipe.context, recipe.dockerfile)
            dockerfile = context.dockerfile_text()
            named = bases.list_bases(dockerfile, recipe.build_args, recipe.target)
            found = {"content": context.digest()}
        pins = {f"from {name}": bases.resolve_digest(engine, name) or UNKNOWN for name in named}
        return {**found, **pins}

    @contextmanager
    def exclusive(
        self,
        key: str,
        what: str,  # noqa: ARG002
        say: Callable[[str], None],  # noqa: ARG002
    ) -> Iterator[Sequence[int]]:
        """Lock the key on this machine, and start the bake's watchdog."""
        with quarantine.lock(key), bake_watchdog.watch(key):
            yield ()

    def adopt(self, job: BakeJob) -> Image | None:
        """The verified image of that key, if the engine has it."""
        recipe, engine = _recipe(job.recipe), endpoint.find()
        if recipe.reference is not None:
            return None
        found = bases.find_local(engine, image_store.name_of(recipe.name, job.key))
        if found is None or (found["Config"].get("Labels") or {}).get(quarantine.KEY) != job.key:
            return None
        return _push(engine, job, _image(engine, job, found))

    def bake(self, job: BakeJob) -> Image:
        """Build, install or pull the image; push it if the recipe names a registry."""
        recipe, engine = _recipe(job.recipe), endpoint.find()
        self.discard(job)
        with BakeLog(job, _secrets(job)) as log:
            try:
                id = _make_image(engine, job, recipe, log)
                image = _image(engine, job, _inspect(engine, id))
                return image if recipe.registry is None else _verify_and_push(engine, job, image)
            except NoEngineError as error:  # it answered at the start of the bake
                raise errors.bake_failure(log, str(error)) from error
            except (BakeError, ConfigurationError):
                raise
            except (EphemeralError, TimeoutError) as error:
                raise errors.bake_failure(log, errors.message_of(error)) from error

    def verify(self, job: BakeJob, image: Image) -> None:
        """Run each ``verify`` command in a new container; then name the image."""
        engine = endpoint.find()
        if not _is_named(engine, image):
            _run_checks(engine, job, image)
        _give_name(engine, job, image)

    def discard(self, job: BakeJob) -> None:
        """Remove the containers and the unverified images of earlier bakes of the key."""
        quarantine.discard(endpoint.find(), job.key)

    def present(self, image: Image) -> bool:
        """Whether the engine has the image, or can pull it by its digest.

        Raises:
            ImageChangedError: The registry has another image under its digest.
        """
        engine = endpoint.find()
        if image_store.find(engine, image) is not None:
            return True
        if PULL not in image.handle:
            return False
        try:
            registry.pull(engine, image.handle[PULL])
        except EphemeralError:
            return False  # the store may have the image
        pulled = image_store.digest_of(engine, _inspect(engine, image.handle[PULL]))
        if pulled != image.digest:
            raise ImageChangedError(
                f"{image.handle[PULL]} is {pulled}, and not the image {image.name!r} "
                f"({image.digest}). Bake it again with `pytest-ephemeral bake {image.name} --force`"
            )
        return True

    def is_pushed(self, image: Image) -> bool:
        """Whether the image was pushed to a registry."""
        return PULL in image.handle

    def explain_missing(self, image: Image) -> str:
        """Why the image can't be pulled from its registry; empty if it was not pushed."""
        if not self.is_pushed(image):
            return ""
        try:
            registry.pull(endpoint.find(), image.handle[PULL])
        except EphemeralError as error:
            return f"it can't be pulled by {image.handle[PULL]}: {error}"
        return ""

    def find_layers(self, file: Path, /) -> Sequence[LayerSpan]:
        """The positions of the layers in a file that ``pack`` wrote."""
        return archive.find_layers(file)

    def pack(self, image: Image, file: Path) -> None:
        """Write the image to a file, as ``docker save`` does."""
        import shutil

        engine = endpoint.find()
        path = f"/images/{image_store.id_on(engine, image)}/get"
        try:
            with engine.stream("GET", path) as answer, file.open("wb") as target:
                shutil.copyfileobj(answer, target, 1 << 20)
        except (EngineError, TimeoutError) as error:
            message = f"the image {image.name!r} can't be saved: {errors.describe_error(error)}"
            raise BakeError(message) from error
        archive.check(image, file)

    def unpack(self, image: Image, file: Path) -> None:
        """Load the image from a file that ``pack`` wrote; the engine checks every layer's digest.

        Raises:
            ImageChangedError: The file has another image.
        """
        engine = endpoint.find()
        with (
            file.open("rb") as source,
            engine.stream(
                "POST", "/images/load", query={"quiet": True}, body=source, headers=TAR_TYPE
            ) as answer,
        ):
            output = [line.get("error") or line.get("stream", "") for line in json_lines(answer)]
        loaded = image_store.find_loaded(engine, image, " ".join(output))
        if loaded is None:
            raise ImageChangedError(
                f"the archive of the image {image.name!r} is not {image.digest}: "
                f"{' '.join(output).strip()}. Bake it again with "
                f"`pytest-ephemeral bake {image.name} --force`"
            )
        image_store.name(engine, loaded, tag_of(image))

    def remove(self, image: Image) -> None:
        """Remove our names of the image; without a name left, the engine deletes it.

        Raises:
            ImageInUseError: A container runs from it.
        """
        engine, tag = endpoint.find(), tag_of(image)
        found = bases.find_local(engine, tag)
        if found is not None and image_store.digest_of(engine, found) != image.digest:
            # The name belongs to another image by now.
            _delete_nameless(engine, image_store.id_on(engine, image), image.key)
            return
        try:
            bases.untag(engine, tag)
            if PULL in image.handle and "reference" not in image.inputs:  # we pushed it
                bases.untag(engine, image.handle[PULL])
        except EngineError as error:
            if error.status != _CONFLICT:
                raise
            raise ImageInUseError(
                f"an environment runs from the image {image.name!r}: {error}"
            ) from error


def _make_image(engine: Engine, job: BakeJob, recipe: DockerRecipe, log: BakeLog) -> str:
    """Build, install or pull the image of a recipe; return its id, or its quarantine name."""
    if recipe.reference is not None:
        return str(bases.ensure_local(engine, recipe.reference)["Id"])
    image_labels = {
        quarantine.KEY: job.key,
        RECIPE: recipe.name,
        quarantine.BAKED: datetime.now(UTC).isoformat(timespec="seconds"),
        ARTIFACT: "" if job.artifact is None else files.digest_of(files.chunks(job.artifact)),
    }
    if recipe.context is None:
        base = bases.ensure_local(engine, recipe.base or "")
        return bake_commands.install(engine, job, base, image_labels, log)
    return build.build(engine, job, recipe, image_labels, log)


def _verify_and_push(engine: Engine, job: BakeJob, image: Image) -> Image:
    """Verify an image, push it, and only then name it: a bake that fails leaves no image."""
    if not _is_named(engine, image):
        _run_checks(engine, job, image)
    pushed = _push(engine, job, image)
    _give_name(engine, job, image)
    return pushed


def _is_named(engine: Engine, image: Image) -> bool:
    """Whether the image has its name, so that it is verified."""
    found = bases.find_local(engine, tag_of(image))
    return found is not None and image_store.digest_of(engine, found) == image.digest


def _run_checks(engine: Engine, job: BakeJob, image: Image) -> None:
    """Run each ``verify`` command in a new container, or raise BakeError."""
    with BakeLog(job, _secrets(job)) as log:
        for command in job.recipe.verify:
            job.say(f"verifying: {command}")
            bake_commands.verify(engine, job, image, command, log)


def _give_name(engine: Engine, job: BakeJob, image: Image) -> None:
    """Give a verified image its name, instead of the one that it had in quarantine."""
    tag = tag_of(image)
    before = bases.find_local(engine, tag)
    is_named = before is not None and image_store.digest_of(engine, before) == image.digest
    if not is_named:
        image_store.name(engine, image_store.id_on(engine, image), tag)
    bases.untag(engine, quarantine.name_of(job))
    if before is not None and not is_named:
        _delete_nameless(engine, before["Id"], image.key)


def _push(engine: Engine, job: BakeJob, image: Image) -> Image:
    """Push the image if its recipe names a registry; record the name to pull it by."""
    repository = _recipe(job.recipe).registry
    if repository is None:
        return image
    job.say(f"pushing it to {repository}")
    id = image_store.id_on(engine, image)
    pushed = registry.push(engine, id, repository, quarantine.short_key(job.key))
    return msgspec.structs.replace(image, handle={**image.handle, PULL: pushed})


def _image(engine: Engine, job: BakeJob, found: Mapping[str, Any]) -> Image:
    recipe = _recipe(job.recipe)
    handle = {"platform": f"{found['Os']}/{found['Architecture']}"}
    for name, protocol in (("exposed", "tcp"), ("udp", "udp")):
        if ports := bases.list_exposed(found["Config"], protocol):
            handle[name] = " ".join(ports)
    repository = registry.split(recipe.reference or "")[0].partition("@")[0]
    for digest in found.get("RepoDigests") or ():
        if repository and digest.partition("@")[0].endswith(repository):
            handle[PULL] = digest
    return Image(
        name=recipe.name,
        key=job.key,
        provider="docker",
        reference=found["Id"],
        digest=image_store.digest_of(engine, found),
        size=found["Size"],
        baked_at=datetime.now(UTC),
        handle=handle,
    )


def _inspect(engine: Engine, reference: str) -> dict[str, Any]:
    found = bases.find_local(engine, reference)
    if found is None:
        raise EphemeralError(
            f"the container engine reported building {reference} but does not list it"
        )
    return found


def _delete_nameless(engine: Engine, id: str, key: str) -> None:
    """Delete a baked image if it has no name and no container uses it."""
    found = bases.find_local(engine, id) or {"RepoTags": ["none is there"]}
    if found.get("RepoTags") or (found["Config"].get("Labels") or {}).get(quarantine.KEY) != key:
        return
    with suppress(EngineError):
        engine.call("DELETE", f"/images/{id}")


def _secrets(job: BakeJob) -> Sequence[str]:
    return buildx.secrets_of(_recipe(job.recipe)).secrets


def _recipe(recipe: Recipe) -> DockerRecipe:
    if not isinstance(recipe, DockerRecipe):
        raise ConfigurationError(f"images.{recipe.name} is not a recipe for container images")
    return recipe
