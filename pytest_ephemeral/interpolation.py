"""``{env:NAME}`` and ``{image:NAME}`` in a template's values, and masking what came from them.

Only these two forms mean anything; every other brace (``${SHELL}``, JSON, Jinja) stays as it is.
One more pair of braces, ``{{env:NAME}}``, stands for the text ``{env:NAME}`` itself.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import quote, quote_plus, unquote

from pytest_ephemeral.errors import ConfigurationError, closest
from pytest_ephemeral.models import Image

MASK: Final = "***"

#: A shorter value is not masked: it would be found all over a log, and make it unreadable.
SHORTEST_SECRET: Final = 4

#: Of the base64 forms of a secret, none shorter than this is looked for.
_SHORTEST_BASE64: Final = 8

#: ``user:password@`` or ``token@`` in a URL.
_USERINFO: Final = re.compile(r"://(?P<user>[^/\s:@?#]*)(?::(?P<password>[^/\s@?#]+))?@")

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


def mask(text: str, secrets: Iterable[str]) -> str:
    """The text with every secret in it shown as ``***``, however it is written there."""
    for secret in spellings(secrets):
        text = text.replace(secret, MASK)
    return text


def bake_secrets(passed: Iterable[str], environ: Mapping[str, str]) -> tuple[str, ...]:
    """What the output of a bake must not show.

    Args:
        passed: The names of variables that the recipe passes on (``pass-env``).
        environ: The variables of this process: passwords in URLs among them (an index, a proxy)
            are secret too, since pip, npm and curl print the URLs they ask.
    """
    return worth_masking([*(environ.get(name, "") for name in passed), *_in_urls(environ.values())])


def _in_urls(values: Iterable[str]) -> Iterator[str]:
    for value in values:
        for found in _USERINFO.finditer(value):
            secret = found["password"] or found["user"]
            yield from (secret, unquote(secret))


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


def worth_masking(secrets: Iterable[str]) -> tuple[str, ...]:
    """The secrets that a log should not show, without those that would be found all over it.

    Longest first, since one may be part of another; logs are masked by line, so lines too.
    """
    parts = {part for secret in secrets for part in (secret, *secret.splitlines())}
    worth = (part for part in parts if len(part) >= SHORTEST_SECRET)
    return tuple(sorted(worth, key=lambda part: (-len(part), part)))


def spellings(secrets: Iterable[str]) -> tuple[str, ...]:
    """The secrets that a log should not show, in every form in which programs print them.

    As they are, in JSON, in a URL, and in base64: alone, or anywhere in a longer text such as
    ``user:password``, as HTTP's basic authentication has it. Longest first.
    """
    return _spellings(worth_masking(secrets))


@lru_cache(maxsize=32)
def _spellings(plain: tuple[str, ...]) -> tuple[str, ...]:
    forms = {form for secret in plain for form in (secret, *_encoded(secret))}
    return tuple(sorted(forms, key=lambda form: (-len(form), form)))


def _encoded(secret: str) -> Iterator[str]:
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    yield from (quote(secret, safe=""), quote(secret), quote_plus(secret))
    for ahead in range(3):
        # The characters that the secret alone decides: not those it shares with its neighbours.
        data = bytes(ahead) + secret.encode(errors="surrogateescape")
        whole = base64.b64encode(data).decode().rstrip("=")
        core = whole[-(-ahead * 8 // 6) : len(data) * 8 // 6]
        if len(core) >= _SHORTEST_BASE64:
            yield from (core, core.replace("+", "-").replace("/", "_"))
