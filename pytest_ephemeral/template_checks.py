"""What is checked of a template beyond the types of its keys."""

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
    """Hold the keys of a template against each other, and against the images there are.

    Raises:
        Problem: They can't be combined, or name what is not there.
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
        raise Problem(where, f"it needs port = NUMBER, or ports = {{ NAME = NUMBER, … }}{instead}")
    if ready.http is not None or ready.tcp:
        raise Problem(join(where, "ready"), "http and tcp need a port, and it has none")


def check_ready(ready: Ready, where: str) -> None:
    """Check a probe's regular expression.

    Raises:
        Problem: It is none.
    """
    if ready.log is None:
        return
    try:
        with warnings.catch_warnings():  # an odd expression is still a valid one
            warnings.simplefilter("ignore")
            re.compile(ready.log)
    except (re.error, OverflowError, RecursionError) as error:
        raise Problem(f"{where}.log", f"not a regular expression: {error}") from None


def _check_references(text: str, recipes: Mapping[str, Recipe], where: str) -> None:
    for name in interpolation.references(text, "image"):
        if name not in recipes:
            raise Problem(where, f"no image {name!r}.{closest(name, recipes)}")
    for name in interpolation.references(text, "env"):
        read(name, Variable, where)


#: How an image that others have made is taken.
_BASE: Final = '[images.NAME] with base = "…"'


def check_image(name: str, recipes: Mapping[str, Recipe], where: str) -> None:
    """Check that an image is there.

    Raises:
        Problem: It is not.
    """
    if name not in recipes:
        known = closest(name, recipes)
        if ":" in name or "/" in name:
            known = f" An image of a registry or an engine is the base of one of yours: {_BASE}"
        raise Problem(join(where, "image"), f"no image {name!r}.{known}")
