"""Building a Dockerfile with ``docker buildx``: all that BuildKit can do, secrets included."""

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

#: What it says of a step: its number, and its name, how it fared, or what it printed.
_STEP: Final = re.compile(r"#(\d+) (\[.*|ERROR: .*)")


def secrets_of(recipe: DockerRecipe) -> Filled:
    """The values of a recipe's ``secrets``.

    Raises:
        ConfigurationError: A variable is not set.
    """
    where = f"images.{recipe.name}.secrets"
    return fill(recipe.secrets, environ=os.environ, images={}, where=where)


class BuildRequest(NamedTuple):
    """What is asked for of a context.

    Attributes:
        recipe: What is built.
        dockerfile: Where it is in the context.
        arguments: The Dockerfile's.
        labels: The image's.
        name: The image's.
    """

    recipe: DockerRecipe
    dockerfile: str
    arguments: Mapping[str, str]
    labels: Mapping[str, str]
    name: str


def build(
    program: str,
    engine: Engine,
    request: BuildRequest,
    context: IO[bytes],
    log: BakeLog,
) -> None:
    """Build it on an engine; that ends when this process does.

    Args:
        program: The plugin's.
        engine: Where.
        request: What is asked for.
        context: The context as a tar.
        log: Takes what is printed.

    Raises:
        BakeError: It can't be built; names the step.
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
        raise errors.bake_failure(log, f"its Dockerfile failed{failure}")


def _follow(output: Iterable[str], log: BakeLog) -> str:
    """Take what it prints; where a build failed, and of what."""
    names: dict[str, str] = {}
    where, why = "", ""
    for line in output:
        log.write(line)
        if found := _STEP.match(line.strip()):
            number, said = found.groups()
            if said.startswith("["):
                names[number] = said
            else:
                where = f" at {names[number]}" if number in names else ""
        elif line.startswith("ERROR: "):
            why = line.removeprefix("ERROR: ").strip()
    return f"{where}: {why or 'docker buildx gives no reason'}"


def _arguments(request: BuildRequest) -> Iterator[str]:
    recipe = request.recipe
    # The engine's own builder: another would have neither its images nor its cache.
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
