"""``{env:NAME}`` and ``{image:NAME}`` in a template's values.

Only these two forms mean anything; every other brace (``${SHELL}``, JSON, Jinja) stays as it is.
One more pair of braces, ``{{env:NAME}}``, stands for the text ``{env:NAME}`` itself.
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


class Filled(NamedTuple):
    """Values with everything filled in, and what of them must never be shown."""

    variables: dict[str, str]
    secrets: tuple[str, ...]


def fill(
    values: Mapping[str, str],
    *,
    environ: Mapping[str, str] | None,
    images: Mapping[str, Image],
    where: str = "env",
) -> Filled:
    """Fill in every reference.

    Args:
        values: By key, such as a template's ``env``.
        environ: Where ``{env:NAME}`` is looked up. None leaves those references, and literal
            braces, as they stand: for what is recorded or shown.
        images: The baked images by name.
        where: The path of the values in the configuration, for the message when one is missing.

    Raises:
        ConfigurationError: A variable is not set, or there is no such image.
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


def references(text: str, kind: str) -> list[str]:
    """The names that a value refers to.

    Args:
        text: The value, as it is written.
        kind: ``env`` or ``image``.
    """
    return [match["name"] for match in _REFERENCE.finditer(text) if match["kind"] == kind]


def _variable(name: str, environ: Mapping[str, str], where: str) -> str:
    try:
        return environ[name]
    except KeyError:
        raise ConfigurationError(
            f"{where}: the variable {name!r} is not set, and {{env:{name}}} asks for it: "
            f"set it (export {name}=…, or a secret of the CI job)"
        ) from None


def _image(name: str, images: Mapping[str, Image], where: str) -> str:
    try:
        return images[name].reference
    except KeyError:
        raise ConfigurationError(f"{where}: no image {name!r}.{closest(name, images)}") from None
