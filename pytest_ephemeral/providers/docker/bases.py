"""The images that an image is made from, pinned: a tag is only where to look."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pytest_ephemeral.errors import ConfigurationError, EphemeralError
from pytest_ephemeral.providers.docker import registry
from pytest_ephemeral.providers.docker.engine import Engine, EngineError

_NOT_FOUND: Final = 404

#: Options, here-documents and arguments that came with BuildKit, see
#: https://docs.docker.com/reference/dockerfile/.
_BUILDKIT: Final = re.compile(
    r"RUN\s+--(?:mount|network|security|device)=|"
    r"(?:COPY|ADD)\s+(?:--\S+\s+)*--(?:chmod|link|parents|exclude|checksum|keep-git-dir)|"
    r"(?:RUN|COPY|ADD)\s+(?:.*\s)?<<-?[\"']?[A-Za-z_]|"
    r"FROM\s+--platform=\S*\$\{?(?:BUILD|TARGET)PLATFORM|"
    r"ARG\s+(?:BUILD|TARGET)(?:PLATFORM|OS|ARCH|VARIANT)\b",
    re.IGNORECASE,
)

#: Where an instruction names another stage, or an image, that it reads from.
_SOURCES: Final = {
    "COPY": re.compile(r"--from=(\S+)"),
    "RUN": re.compile(r"--mount=\S*\bfrom=([^,\s]+)"),
}

#: Seconds a registry may take to say what a tag points to.
_PATIENCE: Final = 20.0


def list_bases(dockerfile: str, arguments: Mapping[str, str], target: str | None) -> list[str]:
    """The images that a Dockerfile builds on, in their order.

    Args:
        dockerfile: Its text.
        arguments: The build's arguments, for ``FROM ${BASE}``.
        target: The stage where the build stops.

    Raises:
        ConfigurationError: It builds on nothing, or has no stage of that name.
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
    """The first line of a Dockerfile that only BuildKit understands; empty where there is none.

    What Docker's older builder says of such a line does not help, and some it misunderstands.
    """
    for word, rest in _instructions(dockerfile):
        line = " ".join([word, *rest.split()])
        if _BUILDKIT.match(line):
            return line
    return ""


def resolve_digest(engine: Engine, reference: str) -> str | None:
    """What a reference stands for now; None when neither the engine nor a registry can tell.

    Returns:
        The digest that its registry knows it by, which is the same for every engine, or the id of
        an image that no registry knows.
    """
    if "@" in reference:
        return reference.partition("@")[2]
    if found := find_local(engine, reference):
        digests = [digest.partition("@")[2] for digest in found.get("RepoDigests") or ()]
        return str(digests[0] if digests else found["Id"])
    try:
        told = engine.call("GET", f"/distribution/{reference}/json", timeout=_PATIENCE)
    except (EphemeralError, TimeoutError):
        return None
    return str(told["Descriptor"]["digest"])


def find_local(engine: Engine, reference: str) -> dict[str, Any] | None:
    """An image of the engine's own; None when it has none of that name or id."""
    try:
        found: dict[str, Any] = engine.call("GET", f"/images/{reference}/json")
    except EngineError as error:
        if error.status == _NOT_FOUND:
            return None
        raise
    return found


def ensure_local(engine: Engine, reference: str) -> dict[str, Any]:
    """An image by its reference, pulled if the engine does not have it.

    Raises:
        EphemeralError: It can't be had.
    """
    if found := find_local(engine, reference):
        return found
    registry.pull(engine, reference)
    if found := find_local(engine, reference):
        return found
    raise EphemeralError(f"{reference} was pulled, but the engine does not list it")


def list_exposed(config: Mapping[str, Any], protocol: str = "tcp") -> list[str]:
    """The ports of one protocol that an image exposes, from its ``Config``."""
    ports = [port.partition("/") for port in config.get("ExposedPorts") or {}]
    return sorted((number for number, _, kind in ports if (kind or "tcp") == protocol), key=int)


def _instructions(dockerfile: str) -> Iterator[tuple[str, str]]:
    """Each instruction's name and the rest of it, comments left out and lines joined."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"[\\`][ \t]*\n", " ", "\n".join(lines)).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word:
            yield word.upper(), rest.strip()


def _from(rest: str, number: int) -> tuple[str, str]:
    """The image of a ``FROM``, and the name of the stage it begins."""
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
    """Remove a name, and with its last name the image; gone already is as well."""
    try:
        engine.call("DELETE", f"/images/{name}")
    except EngineError as error:
        if error.status != _NOT_FOUND:
            raise
