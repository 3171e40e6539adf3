"""An image's key: its inputs, and the differences between two images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pytest_ephemeral import files
from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.models import to_builtins
from pytest_ephemeral.providers import install_files
from pytest_ephemeral.tables import Recipe

#: The version of the baking procedure: increased when the same inputs give another image.
FORMAT: Final = "2"

#: Keys of a recipe that don't determine the content, or that are among the inputs in another form.
_NOT_PARAMETERS: Final = frozenset(
    {
        *("name", "extends", "verify", "install", "artifact", "build", "sources", "files"),
        *("cache-from", "cache-to"),  # where steps are kept, and not what they do
    }
)


def inputs(
    recipe: Recipe, root: Path, *, artifact: str | None, resolved: Mapping[str, str]
) -> dict[str, str]:
    """All inputs of an image, by name, each in a form that people can read.

    Args:
        recipe: The recipe; keys that are not given don't appear.
        root: What its paths are relative to.
        artifact: The artifact's digest.
        resolved: What the provider found out, by name.

    Raises:
        ConfigurationError: The install script can't be read, or there are no such files.
    """
    parameters = {
        name: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for name, value in to_builtins(recipe).items()
        if name not in _NOT_PARAMETERS and value not in (None, "", [], {})
    }
    found = {"format": FORMAT, **parameters, **resolved}
    if recipe.files:
        found["files"] = install_files.digest(recipe.files, root, recipe.name)
    if artifact is not None:
        found["artifact"] = artifact
    if isinstance(recipe.install, str):
        found["install"] = _digest(recipe, root / recipe.install)
    elif recipe.install:
        found["install"] = json.dumps(recipe.install)
    return found


def key(inputs: Mapping[str, str]) -> str:
    """``sha256:…`` over the inputs, as JSON without a choice in how to write it."""
    canonical = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return files.digest_of([canonical.encode()])


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The inputs that differ, such as ``artifact: sha256:ab12… before, sha256:cd34… now``."""
    return [
        f"{name}: {_short(before.get(name))} before, {_short(now.get(name))} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def _short(value: str | None) -> str:
    if value is None:
        return "nothing"
    limit = 19 if value.startswith("sha256:") else 60
    return value if len(value) <= limit else f"{value[:limit]}…"


def _digest(recipe: Recipe, script: Path) -> str:
    try:
        return files.digest_of(files.chunks(script))
    except OSError as error:
        raise ConfigurationError(
            f"the install script of the image {recipe.name!r} can't be read: {script}: "
            f"{error.strerror}. `install` is a script's path, or a list of commands"
        ) from error
