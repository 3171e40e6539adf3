"""Baking a container image: from a Dockerfile, from a base and an install script, or as it is.

A baked image has its name only once it is verified. The catalog knows it by its id, which is the
digest of its configuration and through that of every layer; names are for people, and so that the
engine does not take it for litter.
"""

from __future__ import annotations

import re
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
    """The part of the docker provider that makes images; see ``Baker`` for what is promised."""

    def resolve(self, recipe: Recipe, root: Path) -> Mapping[str, str]:
        """The context's digest, and the digests of the images it is made from."""
        recipe, engine = _recipe(recipe), endpoint.find()
        engine.ping()  # or everything else would wait for long
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
        what: str,  # noqa: ARG002 - there is nobody to tell it
        say: Callable[[str], None],  # noqa: ARG002
    ) -> Iterator[Sequence[int]]:
        """Hold the image of that key alone on this machine, with someone to clean up after us."""
        with quarantine.lock(key), bake_watchdog.watch(key):
            yield ()

    def adopt(self, job: BakeJob) -> Image | None:
        """The image of that key, if the engine has it, verified."""
        recipe, engine = _recipe(job.recipe), endpoint.find()
        if recipe.reference is not None:
            return None
        found = bases.find_local(engine, image_store.name_of(recipe.name, job.key))
        if found is None or (found["Config"].get("Labels") or {}).get(quarantine.KEY) != job.key:
            return None
        return _push(engine, job, _image(engine, job, found))

    def bake(self, job: BakeJob) -> Image:
        """Build it, install it, or take it as it is; and push it where a registry is named."""
        recipe, engine = _recipe(job.recipe), endpoint.find()
        self.discard(job)
        with BakeLog(job, _secrets(job)) as log:
            try:
                id = _make(engine, job, recipe, log)
                image = _image(engine, job, _inspect(engine, id))
                if recipe.registry is not None:
                    self.verify(job, image)
                return _push(engine, job, image)
            except NoEngineError as error:  # it was there when this began
                raise errors.bake_failure(log, str(error)) from error
            except (BakeError, ConfigurationError):
                raise
            except (EphemeralError, TimeoutError) as error:
                raise errors.bake_failure(log, errors.message_of(error)) from error

    def verify(self, job: BakeJob, image: Image) -> None:
        """Run each command in a fresh container of it; then it gets its name."""
        engine, tag = endpoint.find(), tag_of(image)
        before = bases.find_local(engine, tag)
        # It is, since it was made, or before.
        if before is not None and image_store.digest_of(engine, before) == image.digest:
            bases.untag(engine, quarantine.name_of(job))
            return
        with BakeLog(job, _secrets(job)) as log:
            for command in job.recipe.verify:
                job.say(f"verifying: {command}")
                bake_commands.verify(engine, job, image, command, log)
        _name(engine, image_store.id_on(engine, image), tag)
        bases.untag(engine, quarantine.name_of(job))
        if before is not None:
            _delete_nameless(engine, before["Id"], image.key)

    def discard(self, job: BakeJob) -> None:
        """Remove the containers of its bakes, and what they made that was not verified."""
        quarantine.discard(endpoint.find(), job.key)

    def present(self, image: Image) -> bool:
        """Whether the engine has it, or could pull it by its digest."""
        engine = endpoint.find()
        if image_store.find(engine, image) is not None:
            return True
        if PULL not in image.handle:
            return False
        try:
            registry.pull(engine, image.handle[PULL])
        except EphemeralError:
            return False  # the store may have it
        pulled = image_store.digest_of(engine, _inspect(engine, image.handle[PULL]))
        if pulled != image.digest:
            raise ImageChangedError(
                f"{image.handle[PULL]} is {pulled}, and not the image {image.name!r} "
                f"({image.digest}). Bake it again with `pytest-ephemeral bake {image.name} --force`"
            )
        return True

    def is_pushed(self, image: Image) -> bool:
        """Whether a registry has it."""
        return PULL in image.handle

    def find_layers(self, file: Path, /) -> Sequence[LayerSpan]:
        """Where the layers are in what ``pack`` wrote."""
        return archive.find_layers(file)

    def pack(self, image: Image, file: Path) -> None:
        """Write it into one file, as ``docker save`` does."""
        import shutil

        engine = endpoint.find()
        path = f"/images/{image_store.id_on(engine, image)}/get"
        try:
            with engine.stream("GET", path) as answer, file.open("wb") as target:
                shutil.copyfileobj(answer, target, 1 << 20)
        except (EngineError, TimeoutError) as error:
            said = f"the image {image.name!r} can't be saved: {errors.describe_error(error)}"
            raise BakeError(said) from error
        archive.check(image, file)

    def unpack(self, image: Image, file: Path) -> None:
        """Load it from such a file; the engine holds every layer against the configuration."""
        engine = endpoint.find()
        with (
            file.open("rb") as source,
            engine.stream(
                "POST", "/images/load", query={"quiet": True}, body=source, headers=TAR_TYPE
            ) as answer,
        ):
            said = [line.get("error") or line.get("stream", "") for line in json_lines(answer)]
        loaded = _loaded(engine, image, " ".join(said))
        if loaded is None:
            raise ImageChangedError(
                f"the archive of the image {image.name!r} is not {image.digest}: "
                f"{' '.join(said).strip()}. Bake it again with "
                f"`pytest-ephemeral bake {image.name} --force`"
            )
        _name(engine, loaded, tag_of(image))

    def remove(self, image: Image) -> None:
        """Remove our name for it, and with its last name the image."""
        engine, tag = endpoint.find(), tag_of(image)
        found = bases.find_local(engine, tag)
        if found is not None and image_store.digest_of(engine, found) != image.digest:
            # The name was given to another image.
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


def _make(engine: Engine, job: BakeJob, recipe: DockerRecipe, log: BakeLog) -> str:
    """The id of the image that the recipe gives."""
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


def _push(engine: Engine, job: BakeJob, image: Image) -> Image:
    """The image, and where it can be pulled from if its recipe names a registry."""
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


def _loaded(engine: Engine, image: Image, said: str) -> str | None:
    """What the engine calls an image that it has loaded; None where that is another one."""
    for id in [image.digest, *re.findall("sha256:[0-9a-f]{64}", said)]:
        found = bases.find_local(engine, id)
        if found is not None and image_store.digest_of(engine, found) == image.digest:
            return str(found["Id"])
    return None


def _delete_nameless(engine: Engine, id: str, key: str) -> None:
    """Remove what was baked, if nobody has a name for it and no container is of it."""
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


def _name(engine: Engine, id: str, name: str) -> None:
    repository, _, tag = name.rpartition(":")
    engine.call("POST", f"/images/{id}/tag", query={"repo": repository, "tag": tag})
