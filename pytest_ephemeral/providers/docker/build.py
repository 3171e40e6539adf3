"""Build a Dockerfile: with ``docker buildx`` if it is installed, else by the engine's API.

Docker's engine has two builders. The older one works with a plain request in every version, and is
used unless the Dockerfile needs BuildKit, which the engine has since 18.09. BuildKit needs a client
such as buildx only for secrets and for caches outside the engine. Podman has a builder of its own,
with all features.
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
    bases,
    buildx,
    errors,
    identity,
    plugins,
    quarantine,
)
from pytest_ephemeral.providers.docker.build_context import Context
from pytest_ephemeral.providers.docker.buildkit import Trace
from pytest_ephemeral.providers.docker.buildx import BuildRequest
from pytest_ephemeral.providers.docker.engine import TAR_TYPE, Engine, json_lines
from pytest_ephemeral.providers.docker.tables import DockerRecipe
from pytest_ephemeral.providers.protocol import BakeJob

#: The artifact's folder in the context, for ``ARG ARTIFACT`` and ``COPY $ARTIFACT …``.
_ARTIFACT_FOLDER: Final = ".artifact"

#: The value of ``version`` in ``/build`` that selects BuildKit.
_BUILDKIT: Final = "2"

#: The id of BuildKit's progress messages.
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
        engine: The engine to use; it cleans up if this process dies.
        job: The bake.
        recipe: The bake's recipe.
        image_labels: The labels of the new image.
        log: Receives the output.

    Returns:
        The new image's id, or its quarantine name.

    Raises:
        BakeError: A step failed; the message names it.
        ConfigurationError: The recipe needs buildx, which is not installed.
    """
    context = Context.at(job.root / (recipe.context or ""), recipe.dockerfile)
    dockerfile = context.dockerfile_text()
    is_podman = identity.is_podman(engine)
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
        return _ask(engine, query, tar, log, dockerfile)


@contextmanager
def _cancelling(engine: Engine, build: str | None) -> Iterator[None]:
    """Cancel a build in the engine if this process stops waiting for it."""
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
    """Write the context, with the artifact, to a tar; return the request for the build."""
    arguments, extra = dict(recipe.build_args), {}
    if job.artifact is not None:
        place = f"{_ARTIFACT_FOLDER}/{job.artifact.name}"
        arguments["ARTIFACT"], extra = place, {place: job.artifact}
    context.write(tar, extra)
    tar.seek(0)
    return BuildRequest(
        recipe=recipe,
        dockerfile=context.dockerfile,
        arguments=arguments,
        labels=image_labels,
        name=quarantine.name_of(job),
        text=context.dockerfile_text(),
    )


def _query(request: BuildRequest) -> dict[str, Any]:
    """The query of the API's ``/build`` call."""
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
    """Refuse the keys that need buildx if it is not installed."""
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


def _ask(
    engine: Engine, query: Mapping[str, Any], tar: IO[bytes], log: BakeLog, dockerfile: str
) -> str:
    """Build by the engine's API; return the new image's id."""
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
                what = f"its Dockerfile failed{where}: {line['error']}"
                raise errors.build_failure(log, what, dockerfile)
    return id
