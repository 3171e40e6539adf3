"""Formats of several CI servers: Markdown, shell assignments, Java properties."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from urllib.parse import quote

from pytest_ephemeral.publishers.events import EnvironmentEvent
from pytest_ephemeral.text import one_line

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~&])")
_URL_SAFE = ":/?#@!$&'*+,;=%~"


def markdown(text: str) -> str:
    """Escape all characters that have a meaning in Markdown."""
    return _SPECIAL.sub(r"\\\1", one_line(text))


def link(url: str, text: str = "") -> str:
    """A link in Markdown; a URL that is neither http nor https becomes plain text."""
    if not url.startswith(("http://", "https://")):
        return markdown(url)
    return f"[{markdown(text or url)}](<{quote(url, safe=_URL_SAFE + '[]()')}>)"


def markdown_line(event: EnvironmentEvent) -> str:
    """An environment in one line of Markdown; if it is gone, its URL is struck out, no link."""
    environment = event.environment
    head = f"**{markdown(environment.template)}** ({_code(environment.id)})"
    image = f", image {_code(event.image[:19])}" if event.image else ""
    if not event.is_up:
        return f"{head} {event.fate}: ~~{_code(event.url)}~~{image}"
    until = f" until {event.until}" if event.until else ""
    return f"{head} {link(event.url)}{until}{image}"


def assignments(values: Mapping[str, str]) -> str:
    """``NAME=VALUE`` lines without quotes; values of several lines are left out."""
    return "".join(
        f"{name}={value}\n" for name, value in values.items() if value == one_line(value)
    )


def exports(values: Mapping[str, str]) -> str:
    """``export NAME=VALUE`` lines, quoted for a shell that sources them."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())


def properties(values: Mapping[str, str]) -> str:
    """A Java properties file (java.util.Properties.load), in ASCII."""
    return "".join(f"{name}={_property(value)}\n" for name, value in values.items())


def _property(value: str) -> str:
    escapes = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\f": "\\f"}
    written = "".join(escapes.get(letter) or _ascii(letter) for letter in value)
    return f"\\{written}" if written.startswith(" ") else written


def _ascii(letter: str) -> str:
    if " " <= letter <= "~":
        return letter
    units = letter.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _code(text: str) -> str:
    return f"`{one_line(text).replace('`', '%60')}`"
