"""Replace ``{env:NAME}`` and ``{image:NAME}`` in a template's values.

Only these two forms are replaced; all other braces (``${SHELL}``, JSON, Jinja) stay unchanged.
``{{env:NAME}}`` becomes the text ``{env:NAME}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from pytest_ephemeral.errors import ConfigurationError, closest
from pytest_ephemeral.masking import worth_masking
from pytest_ephemeral.models import Image

_REFERENCE: Final = re.compile(
    r"\{(?P<literal>\{(?:env|image):[^{}]*\})\}|\{(?P<kind>env|image):(?P<name>[^{}]*)\}"
)

#: Words that are written instead of ``env`` and ``image``.
_MEANT: Final = {"evn": "env", "environ": "env", "environment": "env", "img": "image"}

#: What looks like a reference. Braces around it, and a ``$`` before it, make it text.
_MISSPELLED: Final = re.compile(r"(?<![{$])\{(?P<kind>[A-Za-z]+):(?P<name>[A-Za-z_][\w-]*)\}(?!\})")


class Filled(NamedTuple):
    """Values with all references filled in, and the secrets in them, which logs must not show."""

    variables: dict[str, str]
    secrets: tuple[str, ...]


def fill(
    values: Mapping[str, str],
    *,
    environ: Mapping[str, str] | None,
    images: Mapping[str, Image],
    where: str = "env",
) -> Filled:
    """Fill in all references.

    Args:
        values: The values by key, such as a template's ``env``.
        environ: The environment variables for ``{env:NAME}``. With None, these references and
            double braces stay unchanged, so that the values can be recorded or shown.
        images: The baked images by name.
        where: The path of the values in the configuration, for messages.

    Raises:
        ConfigurationError: A variable is not set, or an image does not exist.
    """
    secrets: list[str] = []

    def replace(match: re.Match[str]) -> str:
        if match["kind"] == "image":
            return _image(match["name"], images, f"{where}.{key}")
        if environ is None:
            return match[0]
        if match["literal"]:
            return match["literal"]
        secrets.append(_variable(match["name"], environ, f"{where}.{key}"))
        return secrets[-1]

    variables = {}
    for key, value in values.items():
        variables[key] = _REFERENCE.sub(replace, value)
    return Filled(variables, worth_masking(secrets))


def check_kinds(text: str) -> None:
    """Check that a value has no misspelled reference, such as ``{evn:NAME}``.

    Raises:
        ValueError: It has one.
    """
    for match in _MISSPELLED.finditer(text):
        kind = match["kind"].lower()
        meant = _MEANT.get(kind, kind)
        if meant in {"env", "image"} and meant != match["kind"]:
            raise ValueError(
                f"{match[0]} is no placeholder. Did you mean {{{meant}:{match['name']}}}?"
            )


def references(text: str, kind: str) -> list[str]:
    """The names that a value refers to.

    Args:
        text: The value, before references are filled in.
        kind: The kind of references: ``env`` or ``image``.
    """
    return [match["name"] for match in _REFERENCE.finditer(text) if match["kind"] == kind]


def _variable(name: str, environ: Mapping[str, str], where: str) -> str:
    try:
        return environ[name]
    except KeyError:
        raise ConfigurationError(
            f"{where}: {{env:{name}}} needs the environment variable {name}, which is not set: "
            f"export {name}=…, or make it a secret of the CI job"
        ) from None


def _image(name: str, images: Mapping[str, Image], where: str) -> str:
    try:
        return images[name].reference
    except KeyError:
        raise ConfigurationError(f"{where}: no image {name!r}.{closest(name, images)}") from None
