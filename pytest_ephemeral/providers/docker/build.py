"""Building a Dockerfile: with ``docker buildx`` where that is, else by the engine alone.

An engine has two builders. Its older one is the only one that takes a plain request in every
version, so what needs no other is built by it; BuildKit, which Docker's engine has since 18.09, is
asked where a Dockerfile needs it. It gets along without a client that stays connected, but for
secrets and caches outside the engine. Podman has a builder of its own, which knows it all.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Final

from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.providers.bake_log import BakeLog
from pytest_ephemeral.providers.docker import (
    bake_commands,
    bases,
    buildx,
    errors,
    plugins,
    quarantine,
)
from pytest_ephemeral.providers.docker.build_context import Context
from pytest_ephemeral.providers.docker.buildkit import Trace
from pytest_ephemeral.providers.docker.buildx import BuildRequest
from pytest_ephemeral.providers.docker.engine import TAR_TYPE, Engine, json_lines
from pytest_ephemeral.providers.docker.tables import DockerRecipe
from pytest_ephemeral.providers.protocol import BakeJob

#: Where the artifact stands in the context, for ``ARG ARTIFACT`` and ``COPY $ARTIFACT …``.
_ARTIFACT_FOLDER: Final = ".artifact"

#: What the engine calls BuildKit in ``/build``.
_BUILDKIT: Final = "2"

#: What the messages are called that it tells by how it goes on.
_TRACE: Final = "moby.buildkit.trace"


def build(
    engine: Engine,
    job: BakeJob,
    recipe: DockerRecipe,
    image_labels: Mapping[str, str],
    log: BakeLog,
) -> str:
    """Build a recipe's Dockerfile.

    Args:
        engine: Where; it cleans up when this process goes away meanwhile.
        job: What is baked.
        recipe: Its recipe.
        image_labels: The labels of the new image.
        log: Takes what is printed.

    Returns:
        The new image's id, or its quarantine name, which it has in either case.

    Raises:
        BakeError: It can't be built; names the step.
        ConfigurationError: It takes a plugin that is not here.
    """
    context = Context.at(job.root / (recipe.context or ""), recipe.dockerfile)
    dockerfile = context.dockerfile_text()
    is_podman = bake_commands.is_podman(engine)
    program = None if is_podman else plugins.find(buildx.PROGRAM)
    _check_plugin(recipe, program)
    if recipe.platform is None:
        for name in bases.list_bases(dockerfile, recipe.build_args, recipe.target):
            bases.ensure_local(engine, name)
    with tempfile.TemporaryFile() as tar:
        request = _write(tar, context, job, recipe, image_labels)
        if program is not None:
            buildx.build(program, engine, request, tar, log)
            return request.name
        query = _query(request)
        if not is_podman and bases.find_buildkit(dockerfile):
            query |= {"version": _BUILDKIT, "buildid": quarantine.build_id(job.key)}
        return _ask(engine, query, tar, log)


@contextmanager
def _cancelling(engine: Engine, build: str | None) -> Iterator[None]:
    """Have the engine stop a build where this process gives up."""
    try:
        yield
    except BaseException:
        if build is not None:
            quarantine.cancel(engine, build)
        raise


def _write(
    tar: IO[bytes],
    context: Context,
    job: BakeJob,
    recipe: DockerRecipe,
    image_labels: Mapping[str, str],
) -> BuildRequest:
    """Write the context, with the artifact, and say what is asked for of it."""
    arguments, extra = dict(recipe.build_args), {}
    if job.artifact is not None:
        place = f"{_ARTIFACT_FOLDER}/{job.artifact.name}"
        arguments["ARTIFACT"], extra = place, {place: job.artifact}
    context.write(tar, extra)
    tar.seek(0)
    return BuildRequest(
        recipe, context.dockerfile, arguments, image_labels, quarantine.name_of(job)
    )


def _query(request: BuildRequest) -> dict[str, Any]:
    """What ``/build`` takes."""
    return {
        "dockerfile": request.dockerfile,
        "target": request.recipe.target,
        "platform": request.recipe.platform,
        "buildargs": json.dumps(request.arguments),
        "t": request.name,
        "labels": json.dumps(dict(request.labels)),
        "rm": True,
        "forcerm": True,
    }


def _check_plugin(recipe: DockerRecipe, program: str | None) -> None:
    """Refuse what an engine can't do without the plugin."""
    if program is not None:
        return
    asked = {
        "secrets": recipe.secrets,
        "cache-from": recipe.cache_from,
        "cache-to": recipe.cache_to,
    }
    if keys := [key for key, value in asked.items() if value]:
        raise ConfigurationError(
            f"images.{recipe.name}: {', '.join(keys)} need `docker buildx`, which is not "
            "installed: install Docker's plugin docker-buildx-plugin, or (Debian) docker-buildx"
        )


def _ask(engine: Engine, query: Mapping[str, Any], tar: IO[bytes], log: BakeLog) -> str:
    """Have the engine build; the id of what it made."""
    step, id, trace = "", "", Trace()
    asked = engine.stream("POST", "/build", query=query, body=tar, headers=TAR_TYPE, timeout=None)
    with _cancelling(engine, query.get("buildid")), asked as answer:
        for line in json_lines(answer):
            if line.get("id") == _TRACE:
                for text in trace.read(line["aux"]):
                    log.write(text)
                continue
            text = line.get("stream", "")
            log.write(text)
            step = text.strip() if text.startswith("Step ") else step
            id = (line.get("aux") or {}).get("ID") or id
            if "error" in line:
                where = f" at {trace.failed or step}" if trace.failed or step else ""
                raise errors.bake_failure(log, f"its Dockerfile failed{where}: {line['error']}")
    return id
