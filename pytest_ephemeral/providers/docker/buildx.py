"""Build a Dockerfile with ``docker buildx``, which supports all features of BuildKit."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Final, NamedTuple

from pytest_ephemeral.interpolation import Filled, fill
from pytest_ephemeral.providers.bake_log import BakeLog
from pytest_ephemeral.providers.docker import errors, plugins
from pytest_ephemeral.providers.docker.engine import Engine
from pytest_ephemeral.providers.docker.tables import DockerRecipe

#: The plugin's program.
PROGRAM: Final = "docker-buildx"

#: A line about a step: its number, then its name or its error.
_STEP: Final = re.compile(r"#(\d+) (\[.*|ERROR: .*)")


def secrets_of(recipe: DockerRecipe) -> Filled:
    """The values of a recipe's ``secrets``.

    Raises:
        ConfigurationError: A variable is not set.
    """
    where = f"images.{recipe.name}.secrets"
    return fill(recipe.secrets, environ=os.environ, images={}, where=where)


class BuildRequest(NamedTuple):
    """What to build from a context.

    Attributes:
        recipe: The recipe.
        dockerfile: The path of the Dockerfile in the context.
        arguments: The build arguments.
        labels: The labels of the new image.
        name: The name of the new image.
        text: The text of the Dockerfile.
    """

    recipe: DockerRecipe
    dockerfile: str
    arguments: Mapping[str, str]
    labels: Mapping[str, str]
    name: str
    text: str


def build(
    program: str,
    engine: Engine,
    request: BuildRequest,
    context: IO[bytes],
    log: BakeLog,
) -> None:
    """Build an image on an engine; the build ends with this process.

    Args:
        program: The path of the plugin's program.
        engine: The engine to use.
        request: What to build.
        context: The context, as a tar.
        log: Receives the output.

    Raises:
        BakeError: A step failed; the message names it.
    """
    argv = [program, "build", *_arguments(request)]
    environ = plugins.environ_for(engine.address, "BUILDX_BUILDER", "BUILDX_CONFIG")
    for number, (id, value) in enumerate(secrets_of(request.recipe).variables.items()):
        variable = f"PYTEST_EPHEMERAL_SECRET_{number}"
        argv.append(f"--secret=id={id},env={variable}")
        environ[variable] = value
    process = plugins.start([*argv, "-"], environ=environ, stdin=context, stderr=subprocess.STDOUT)
    with process:
        try:
            failure = _follow(process.stdout or (), log)
        except BaseException:
            plugins.kill(process)
            raise
    if process.returncode != 0:
        raise errors.build_failure(log, f"its Dockerfile failed{failure}", request.text)


def _follow(output: Iterable[str], log: BakeLog) -> str:
    """Log the output; return the step that failed, and the reason."""
    names: dict[str, str] = {}
    where, why = "", ""
    for line in output:
        log.write(line)
        if found := _STEP.match(line.strip()):
            number, text = found.groups()
            if text.startswith("["):
                names[number] = text
            else:
                where = f" at {names[number]}" if number in names else ""
        elif line.startswith("ERROR: "):
            why = line.removeprefix("ERROR: ").strip()
    return f"{where}: {why or 'docker buildx gives no reason'}"


def _arguments(request: BuildRequest) -> Iterator[str]:
    recipe = request.recipe
    # Use the engine's own builder: another one does not have its images and cache.
    yield from ("--builder=default", "--load", "--progress=plain")
    yield from ("--provenance=false", "--sbom=false")
    yield from (f"--tag={request.name}", f"--file={request.dockerfile}")
    yield from (f"--build-arg={key}={value}" for key, value in request.arguments.items())
    yield from (f"--label={key}={value}" for key, value in request.labels.items())
    if recipe.target is not None:
        yield f"--target={recipe.target}"
    if recipe.platform is not None:
        yield f"--platform={recipe.platform}"
    yield from (f"--cache-from={source}" for source in recipe.cache_from)
    yield from (f"--cache-to={target}" for target in recipe.cache_to)
