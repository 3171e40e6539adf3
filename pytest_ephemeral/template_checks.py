"""Check a template: combinations of keys, and references to images."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Final

from pytest_ephemeral import interpolation
from pytest_ephemeral.errors import closest
from pytest_ephemeral.reading import Problem, join, read
from pytest_ephemeral.tables import Ready, Recipe, Template, Variable


def check_template(template: Template, where: str, recipes: Mapping[str, Recipe]) -> None:
    """Check combinations of a template's keys, and its references to images and ports.

    Args:
        template: The template.
        where: The path of its table, for messages.
        recipes: All recipes by name.

    Raises:
        Problem: Keys can't be combined, or an image or a port does not exist.
    """
    for image in template.images():
        check_image(image, recipes, where)
    if template.port is not None and template.ports:
        raise Problem(where, "port and ports can't be combined: remove one of them")
    _check_ports(template, where)
    if template.ttl <= 0:
        raise Problem(join(where, "ttl"), "expected more than 0")
    for key, text in template.env.items():
        _check_references(text, recipes, join(join(where, "env"), key))
    if template.ready is None:
        return
    ready = join(where, "ready")
    check_ready(template.ready, ready)
    for key, text in template.ready.headers.items():
        _check_references(text, recipes, join(f"{ready}.headers", key))
    port = template.ready.port
    if port is not None and port not in template.endpoints():
        raise Problem(f"{ready}.port", f"no port {port!r}.{closest(port, template.endpoints())}")


def _check_ports(template: Template, where: str) -> None:
    if template.endpoints():
        return
    ready = template.ready
    if template.needs_port or ready is None or not (ready.log or ready.command):
        instead = "" if template.needs_port else ", or without a port ready = { log = REGEX }"
        raise Problem(where, f"needs port = NUMBER, or ports = {{ NAME = NUMBER, … }}{instead}")
    if ready.http is not None or ready.tcp:
        raise Problem(join(where, "ready"), "http and tcp need a port, and it has none")


def check_ready(ready: Ready, where: str) -> None:
    """Check the regular expression of a readiness check.

    Raises:
        Problem: It is not valid.
    """
    if ready.log is None:
        return
    try:
        with warnings.catch_warnings():  # an expression with warnings is valid
            warnings.simplefilter("ignore")
            re.compile(ready.log)
    except (re.error, OverflowError, RecursionError) as error:
        raise Problem(f"{where}.log", f"not a regular expression: {error}") from None


def _check_references(text: str, recipes: Mapping[str, Recipe], where: str) -> None:
    try:
        interpolation.check_kinds(text)
    except ValueError as error:
        raise Problem(where, str(error)) from None
    for name in interpolation.references(text, "image"):
        if name not in recipes:
            raise Problem(where, f"no image {name!r}.{closest(name, recipes)}")
    for name in interpolation.references(text, "env"):
        read(name, Variable, where)


#: The table for an image that was made elsewhere, for a message.
_BASE: Final = '[images.NAME] with base = "…"'


def check_image(name: str, recipes: Mapping[str, Recipe], where: str) -> None:
    """Check that an image is in the configuration.

    Raises:
        Problem: It is not.
    """
    if name not in recipes:
        known = closest(name, recipes)
        if ":" in name or "/" in name:
            known = f" An image of a registry or an engine is the base of one of yours: {_BASE}"
        raise Problem(join(where, "image"), f"no image {name!r}.{known}")
