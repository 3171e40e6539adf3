"""Secrets: what of a text is one, and ``***`` in its place."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import quote, quote_plus, unquote

MASK: Final = "***"

#: A shorter value is not masked: it would be found all over a log, and make it unreadable.
SHORTEST_SECRET: Final = 4

#: Of the base64 forms of a secret, none shorter than this is looked for.
_SHORTEST_BASE64: Final = 8

#: ``user:password@`` or ``token@`` in a URL.
_USERINFO: Final = re.compile(r"://(?P<user>[^/\s:@?#]*)(?::(?P<password>[^/\s@?#]+))?@")


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


def _in_urls(values: Iterable[str]) -> Iterator[str]:
    for value in values:
        for found in _USERINFO.finditer(value):
            secret = found["password"] or found["user"]
            yield from (secret, unquote(secret))
