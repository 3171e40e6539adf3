"""An image's inputs, its key, and the differences between two images' inputs."""

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

#: The version of the baking procedure. It changes if the same inputs would make a different image.
FORMAT: Final = "2"

#: Keys of a recipe that don't change the content, or that are inputs in another form.
_NOT_PARAMETERS: Final = frozenset(
    {
        *("name", "extends", "verify", "install", "artifact", "build", "sources", "files"),
        *("cache-from", "cache-to"),  # the place of the build cache does not change the content
    }
)


def inputs(
    recipe: Recipe, root: Path, *, artifact: str | None, resolved: Mapping[str, str]
) -> dict[str, str]:
    """All inputs of an image, by name, as readable text.

    Args:
        recipe: The recipe. Keys without a value are left out.
        root: The folder that its paths are relative to.
        artifact: The artifact's digest; None if there is none.
        resolved: The provider's own inputs, by name, such as the digest of the base image.

    Raises:
        ConfigurationError: The install script can't be read, or no file matches ``files``.
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
    """``sha256:…`` of the inputs as canonical JSON: sorted, without spaces, in ASCII."""
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
        command = f"install = [{json.dumps(recipe.install)}]"
        raise ConfigurationError(
            f"images.{recipe.name}.install: the script {script} can't be read: {error.strerror}. "
            f"A command is written in a list: {command}"
        ) from error
