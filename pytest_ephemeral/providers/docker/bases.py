"""The base images of an image, and their digests: a tag may stand for another image tomorrow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pytest_ephemeral.errors import ConfigurationError, EphemeralError
from pytest_ephemeral.providers.docker import registry
from pytest_ephemeral.providers.docker.engine import Engine, EngineError

_NOT_FOUND: Final = 404

#: Options, here-documents and arguments that only BuildKit has:
#: https://docs.docker.com/reference/dockerfile/
_BUILDKIT: Final = re.compile(
    r"RUN\s+--(?:mount|network|security|device)=|"
    r"(?:COPY|ADD)\s+(?:--\S+\s+)*--(?:chmod|link|parents|exclude|checksum|keep-git-dir)|"
    r"(?:RUN|COPY|ADD)\s+(?:.*\s)?<<-?[\"']?[A-Za-z_]|"
    r"FROM\s+--platform=\S*\$\{?(?:BUILD|TARGET)PLATFORM|"
    r"ARG\s+(?:BUILD|TARGET)(?:PLATFORM|OS|ARCH|VARIANT)\b",
    re.IGNORECASE,
)

#: By instruction: the option that names a stage or an image to read from.
_SOURCES: Final = {
    "COPY": re.compile(r"--from=(\S+)"),
    "RUN": re.compile(r"--mount=\S*\bfrom=([^,\s]+)"),
}

#: Seconds that a registry may take to resolve a tag.
_PATIENCE: Final = 20.0


def list_bases(dockerfile: str, arguments: Mapping[str, str], target: str | None) -> list[str]:
    """The images that a Dockerfile reads from, in order.

    Args:
        dockerfile: The Dockerfile's text.
        arguments: The build arguments, for ``FROM ${BASE}``.
        target: The stage at which the build ends; None for the last.

    Raises:
        ConfigurationError: It has no FROM, or no stage of that name.
    """
    values: dict[str, str] = {}
    stages: list[str] = []
    found: list[str] = []
    for word, rest in _instructions(dockerfile):
        if word == "ARG" and not stages:
            name, _, default = rest.partition("=")
            values[name] = arguments.get(name, default.strip("\"'"))
        elif word == "FROM":
            if target is not None and target.lower() in stages:
                break
            image, stage = _from(_filled(rest, values), len(stages))
            if image.lower() not in stages and image != "scratch":
                found.append(image)
            stages.append(stage)
        elif word in _SOURCES and (source := _SOURCES[word].search(rest)):
            image = source[1]
            if not image.isdigit() and image.lower() not in stages:
                found.append(image)
    if not stages:
        raise ConfigurationError("the Dockerfile has no FROM: name the image that it builds on")
    if target is not None and target.lower() not in stages and not target.isdigit():
        named = ", ".join(stage for stage in stages if not stage.isdigit()) or "none has a name"
        raise ConfigurationError(f"the Dockerfile has no stage {target!r}; its stages: {named}")
    return list(dict.fromkeys(found))


def find_buildkit(dockerfile: str) -> str:
    """The first instruction of a Dockerfile that needs BuildKit; empty if there is none.

    Docker's older builder reports such instructions badly, and misunderstands some.
    """
    for word, rest in _instructions(dockerfile):
        line = " ".join([word, *rest.split()])
        if _BUILDKIT.match(line):
            return line
    return ""


def resolve_digest(engine: Engine, reference: str) -> str | None:
    """The digest of the image that a reference stands for now.

    Returns:
        The digest in the registry, which is the same for every engine; for an image without one,
        its id; None if neither the engine nor the registry has the image.

    Raises:
        ConfigurationError: The engine refuses the reference.
    """
    if "@" in reference:
        return reference.partition("@")[2]
    try:
        found = find_local(engine, reference)
    except EngineError as error:
        raise ConfigurationError(f"the image {reference!r} can't be looked up: {error}") from error
    if found:
        digests = [digest.partition("@")[2] for digest in found.get("RepoDigests") or ()]
        return str(digests[0] if digests else found["Id"])
    try:
        found = engine.call("GET", f"/distribution/{reference}/json", timeout=_PATIENCE)
    except (EphemeralError, TimeoutError):
        return None
    return str(found["Descriptor"]["digest"])


def find_local(engine: Engine, reference: str) -> dict[str, Any] | None:
    """The engine's description of a local image, by name or id; None if there is none."""
    try:
        found: dict[str, Any] = engine.call("GET", f"/images/{reference}/json")
    except EngineError as error:
        if error.status == _NOT_FOUND:
            return None
        raise
    return found


def ensure_local(engine: Engine, reference: str) -> dict[str, Any]:
    """The engine's description of an image, which is pulled if it is not local.

    Raises:
        EphemeralError: It can't be pulled.
    """
    if found := find_local(engine, reference):
        return found
    registry.pull(engine, reference)
    if found := find_local(engine, reference):
        return found
    raise EphemeralError(f"{reference} was pulled, but the engine does not list it")


def list_exposed(config: Mapping[str, Any], protocol: str = "tcp") -> list[str]:
    """The ports of a protocol that an image exposes, by its ``Config``."""
    ports = [port.partition("/") for port in config.get("ExposedPorts") or {}]
    return sorted((number for number, _, kind in ports if (kind or "tcp") == protocol), key=int)


def _instructions(dockerfile: str) -> Iterator[tuple[str, str]]:
    """The name and the arguments of each instruction, without comments, continued lines joined."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"[\\`][ \t]*\n", " ", "\n".join(lines)).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word:
            yield word.upper(), rest.strip()


def _from(rest: str, number: int) -> tuple[str, str]:
    """The image of a ``FROM``, and the name (or number) of its stage."""
    words = [word for word in rest.split() if not word.startswith("--")]
    if not words:
        raise ConfigurationError("a FROM of the Dockerfile names no image")
    named = len(words) > 2 and words[1].upper() == "AS"
    return words[0], words[2].lower() if named else str(number)


def _filled(text: str, values: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        name, default = match["braced"] or match["plain"], match["default"] or ""
        return values.get(name) or default

    return re.sub(r"\$(?:\{(?P<braced>\w+)(?::-(?P<default>[^}]*))?\}|(?P<plain>\w+))", value, text)


def untag(engine: Engine, name: str) -> None:
    """Remove a name of an image, if there is one; with the last name, the image is deleted."""
    try:
        engine.call("DELETE", f"/images/{name}")
    except EngineError as error:
        if error.status != _NOT_FOUND:
            raise
