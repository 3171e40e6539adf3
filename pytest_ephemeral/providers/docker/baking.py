"""Baking a container image: from a Dockerfile, from a base and an install script, or as it is.

A baked image has its name only once it is verified. The catalog knows it by its id, which is the
digest of its configuration and through that of every layer; names are for people, and so that the
engine does not take it for litter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from pytest_ephemeral import files, labels, machine
from pytest_ephemeral.errors import (
    BakeError,
    ConfigurationError,
    EphemeralError,
    ImageChangedError,
    ImageInUseError,
)
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers.docker import (
    archive,
    bases,
    finding,
    guard,
    halfmade,
    installing,
    registry,
    remedies,
)
from pytest_ephemeral.providers.docker.context import Context
from pytest_ephemeral.providers.docker.engine import (
    TAR_TYPE,
    Engine,
    EngineError,
    NoEngineError,
    json_lines,
)
from pytest_ephemeral.providers.docker.output import Output
from pytest_ephemeral.providers.docker.tables import DockerRecipe
from pytest_ephemeral.providers.protocol import UNKNOWN, BakeJob
from pytest_ephemeral.tables import Recipe

ARTIFACT: Final = labels.PREFIX + "artifact"
RECIPE: Final = labels.PREFIX + "recipe"

#: What baked images are called: ``pytest-ephemeral/NAME:KEY``.
REPOSITORY: Final = "pytest-ephemeral"

#: In an image's handle: where any engine can pull it, by its digest.
PULL: Final = "pull"

#: Where the artifact stands in the context, for ``ARG ARTIFACT`` and ``COPY $ARTIFACT …``.
_ARTIFACT_FOLDER: Final = ".artifact"

_CONFLICT: Final = 409


class DockerBaker:
    """The part of the docker provider that makes images; see ``Baker`` for what is promised."""

    def resolve(self, recipe: Recipe, root: Path) -> Mapping[str, str]:
        """The context's digest, and the digests of the images it is made from."""
        recipe, engine = _recipe(recipe), finding.find()
        if recipe.reference is not None:
            return {"content": bases.pinned(engine, recipe.reference) or UNKNOWN}
        if recipe.context is None:
            named, found = [recipe.base or ""], {}
        else:
            context = Context.at(root / recipe.context, recipe.dockerfile)
            dockerfile = (context.folder / context.dockerfile).read_text()
            named = bases.named_in(dockerfile, recipe.build_args, recipe.target)
            found = {"content": context.digest()}
        pins = {f"from {name}": bases.pinned(engine, name) or UNKNOWN for name in named}
        return {**found, **pins}

    @contextmanager
    def exclusive(
        self,
        key: str,
        what: str,  # noqa: ARG002 - there is nobody to tell it
        say: Callable[[str], None],  # noqa: ARG002
    ) -> Iterator[Sequence[int]]:
        """Hold the image of that key alone on this machine, with someone to clean up after us."""
        with held(key), guard.watching(key):
            yield ()

    def adopt(self, job: BakeJob) -> Image | None:
        """The image of that key, if the engine has it, verified."""
        recipe, engine = _recipe(job.recipe), finding.find()
        found = None if recipe.reference else bases.local(engine, _tag(job.recipe.name, job.key))
        if found is None or (found["Config"].get("Labels") or {}).get(halfmade.KEY) != job.key:
            return None
        return _pushed(engine, job, _image(job, found))

    def bake(self, job: BakeJob) -> Image:
        """Build it, install it, or take it as it is; and push it where a registry is named."""
        recipe, engine = _recipe(job.recipe), finding.find()
        self.discard(job.key)
        with Output(job) as output:
            try:
                id = _made(engine, job, recipe, output)
                image = _image(job, _found(engine, id))
                if recipe.registry is not None:
                    self.verify(job, image)
                return _pushed(engine, job, image)
            except NoEngineError as error:  # it was there when this began
                raise output.failure(f"baking failed: {error}") from error
            except (BakeError, ConfigurationError):
                raise
            except (EphemeralError, TimeoutError) as error:
                raise output.failure(f"baking failed: {remedies.plain(error)}") from error

    def verify(self, job: BakeJob, image: Image) -> None:
        """Run each command in a fresh container of it; then it gets its name."""
        engine, tag = finding.find(), _tag(image.name, image.key)
        before = bases.local(engine, tag)
        if before is not None and before["Id"] == image.reference:  # since it was made, or before
            bases.forget(engine, halfmade.name_of(job))
            return
        with Output(job) as output:
            for command in job.recipe.verify:
                job.say(f"verifying: {command}")
                installing.verify(engine, job, image, command, output)
        repository, _, digits = tag.rpartition(":")
        query = {"repo": repository, "tag": digits}
        engine.call("POST", f"/images/{image.reference}/tag", query=query)
        bases.forget(engine, halfmade.name_of(job))
        if before is not None:
            _delete_nameless(engine, before["Id"], image.key)

    def discard(self, key: str) -> None:
        """Remove the containers of its bakes, and what they made that was not verified."""
        engine = finding.find()
        installing.discard(engine, key)
        halfmade.discard(engine, key)

    def present(self, image: Image) -> bool:
        """Whether the engine has it, or could pull it by its digest."""
        engine = finding.find()
        if bases.local(engine, image.reference) is not None:
            return True
        if PULL not in image.handle:
            return False
        try:
            registry.pull(engine, image.handle[PULL])
        except EphemeralError:
            return False  # the store may have it
        found = _found(engine, image.handle[PULL])
        if found["Id"] != image.digest:
            raise ImageChangedError(
                f"{image.handle[PULL]} is {found['Id']}, and not the image {image.name!r} "
                f"({image.digest}). Bake it again with `pytest-ephemeral bake {image.name} --force`"
            )
        return True

    def pack(self, image: Image, file: Path) -> None:
        """Write it into one file, as ``docker save`` does."""
        import shutil

        path = f"/images/{image.reference}/get"
        try:
            with finding.find().stream("GET", path) as answer, file.open("wb") as target:
                shutil.copyfileobj(answer, target, 1 << 20)
        except (EngineError, TimeoutError) as error:
            said = f"the image {image.name!r} can't be saved: {remedies.told(error)}"
            raise BakeError(said) from error
        archive.check(image, file)

    def unpack(self, image: Image, file: Path) -> None:
        """Load it from such a file; the engine holds every layer against the configuration."""
        engine = finding.find()
        with (
            file.open("rb") as source,
            engine.stream(
                "POST", "/images/load", query={"quiet": True}, body=source, headers=TAR_TYPE
            ) as answer,
        ):
            said = [line.get("error") or line.get("stream", "") for line in json_lines(answer)]
        if bases.local(engine, image.reference) is None:
            raise ImageChangedError(
                f"the archive of the image {image.name!r} is not {image.digest}: "
                f"{' '.join(said).strip()}. Bake it again with "
                f"`pytest-ephemeral bake {image.name} --force`"
            )
        repository, _, digits = _tag(image.name, image.key).rpartition(":")
        query = {"repo": repository, "tag": digits}
        engine.call("POST", f"/images/{image.reference}/tag", query=query)

    def remove(self, image: Image) -> None:
        """Remove our name for it, and with its last name the image."""
        engine, tag = finding.find(), _tag(image.name, image.key)
        found = bases.local(engine, tag)
        if found is not None and found["Id"] != image.reference:
            # Someone has given the name to another image.
            _delete_nameless(engine, image.reference, image.key)
            return
        try:
            bases.forget(engine, tag)
            if image.archive is not None and PULL in image.handle:  # baked here or elsewhere by us
                bases.forget(engine, image.handle[PULL])
        except EngineError as error:
            if error.status != _CONFLICT:
                raise
            raise ImageInUseError(
                f"an environment runs from the image {image.name!r}: {error}"
            ) from error


@contextmanager
def held(key: str) -> Iterator[None]:
    """Hold the image of that key alone on this machine, until this process ends at the latest."""
    folder = machine.state_directory() / "bakes"
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder / f"{_digits(key)}.lock"):
        yield


def exposed(config: Mapping[str, Any]) -> list[str]:
    """The TCP ports that an image exposes, from its ``Config``."""
    ports = config.get("ExposedPorts") or {}
    return sorted((port.partition("/")[0] for port in ports if port.endswith("/tcp")), key=int)


def _made(engine: Engine, job: BakeJob, recipe: DockerRecipe, output: Output) -> str:
    """The id of the image that the recipe gives."""
    if recipe.reference is not None:
        return str(bases.obtained(engine, recipe.reference)["Id"])
    marks = {
        halfmade.KEY: job.key,
        RECIPE: recipe.name,
        halfmade.BAKED: datetime.now(UTC).isoformat(timespec="seconds"),
        ARTIFACT: "" if job.artifact is None else files.digest_of(files.chunks(job.artifact)),
    }
    if recipe.context is None:
        base = bases.obtained(engine, recipe.base or "")
        return installing.install(engine, job, base, marks, output)
    context = Context.at(job.root / recipe.context, recipe.dockerfile)
    dockerfile = (context.folder / context.dockerfile).read_text()
    for name in bases.named_in(dockerfile, recipe.build_args, recipe.target):
        bases.obtained(engine, name)
    return _built(engine, job, context, marks, output)


def _built(
    engine: Engine, job: BakeJob, context: Context, marks: Mapping[str, str], output: Output
) -> str:
    """Build a Dockerfile; the engine cleans up when this process goes away meanwhile."""
    import tempfile

    recipe = _recipe(job.recipe)
    arguments, extra = dict(recipe.build_args), {}
    if job.artifact is not None:
        place = f"{_ARTIFACT_FOLDER}/{job.artifact.name}"
        arguments["ARTIFACT"], extra = place, {place: job.artifact}
    query = {
        "dockerfile": context.dockerfile,
        "target": recipe.target,
        "buildargs": json.dumps(arguments),
        "t": halfmade.name_of(job),
        "labels": json.dumps(dict(marks)),
        "rm": True,
        "forcerm": True,
    }
    step, id = "", ""
    with tempfile.TemporaryFile() as tar:
        context.write(tar, extra)
        tar.seek(0)
        with engine.stream(
            "POST", "/build", query=query, body=tar, headers=TAR_TYPE, timeout=None
        ) as answer:
            for line in json_lines(answer):
                text = line.get("stream", "")
                output.write(text)
                step = text.strip() if text.startswith("Step ") else step
                id = line.get("aux", {}).get("ID") or id
                if "error" in line:
                    where = f" at {step}" if step else ""
                    raise output.failure(f"its Dockerfile failed{where}: {line['error']}")
    return id


def _pushed(engine: Engine, job: BakeJob, image: Image) -> Image:
    """The image, and where it can be pulled from if its recipe names a registry."""
    repository = _recipe(job.recipe).registry
    if repository is None:
        return image
    job.say(f"pushing it to {repository}")
    pushed = registry.push(engine, image.reference, repository, _digits(job.key))
    return msgspec.structs.replace(image, handle={**image.handle, PULL: pushed})


def _image(job: BakeJob, found: Mapping[str, Any]) -> Image:
    recipe = _recipe(job.recipe)
    handle = {"platform": f"{found['Os']}/{found['Architecture']}"}
    if ports := exposed(found["Config"]):
        handle["exposed"] = " ".join(ports)
    repository = registry.split(recipe.reference or "")[0].partition("@")[0]
    for digest in found.get("RepoDigests") or ():
        if repository and digest.partition("@")[0].endswith(repository):
            handle[PULL] = digest
    return Image(
        name=recipe.name,
        key=job.key,
        provider="docker",
        reference=found["Id"],
        digest=found["Id"],
        size=found["Size"],
        baked_at=datetime.now(UTC),
        handle=handle,
    )


def _found(engine: Engine, reference: str) -> dict[str, Any]:
    found = bases.local(engine, reference)
    if found is None:
        raise EphemeralError(f"the engine has just made the image {reference}, and has it not")
    return found


def _delete_nameless(engine: Engine, id: str, key: str) -> None:
    """Remove what was baked, if nobody has a name for it and no container is of it."""
    found = bases.local(engine, id) or {"RepoTags": ["none is there"]}
    if found.get("RepoTags") or (found["Config"].get("Labels") or {}).get(halfmade.KEY) != key:
        return
    with suppress(EngineError):
        engine.call("DELETE", f"/images/{id}")


def _recipe(recipe: Recipe) -> DockerRecipe:
    if not isinstance(recipe, DockerRecipe):
        raise ConfigurationError(f"the recipe {recipe.name!r} is none for containers")
    return recipe


def _tag(name: str, key: str) -> str:
    return f"{REPOSITORY}/{name}:{_digits(key)}"


def _digits(key: str) -> str:
    """As much of a key as names need."""
    return key.removeprefix("sha256:")[:12]
