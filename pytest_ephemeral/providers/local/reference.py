"""Images that are folders prepared by someone else: used as they are, pinned by their content."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pytest_ephemeral.errors import ConfigurationError, ImageChangedError
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers.local import tree
from pytest_ephemeral.providers.protocol import BakeJob

#: In an image's handle: it is someone else's folder.
AS_IT_IS: Final = "as-it-is"


def folder_of(reference: str, root: Path) -> Path:
    """The folder that a recipe refers to.

    Raises:
        ConfigurationError: It is not there.
    """
    folder = (root / reference).absolute()
    if not folder.is_dir():
        raise ConfigurationError(
            f"the image's reference {reference!r} is not a folder: {folder} is not there. "
            "It should be one that was prepared elsewhere"
        )
    return folder


def read_manifest(folder: Path) -> bytes:
    """The manifest of a folder as it is now.

    Raises:
        ImageChangedError: It can't be read whole.
    """
    try:
        return tree.manifest(folder)
    except OSError as error:
        raise ImageChangedError(f"{folder} can't be read whole: {error}") from error


def take(job: BakeJob, folder: Path) -> Image:
    """The image that a folder is now."""
    return Image(
        name=job.recipe.name,
        key=job.key,
        provider="local",
        reference=str(folder),
        digest=tree.digest(read_manifest(folder)),
        size=tree.size(folder),
        baked_at=datetime.now(UTC),
        handle={AS_IT_IS: "yes"},
    )


def is_unchanged(image: Image) -> bool:
    """Whether a folder is there, with the content it had when it was taken.

    Raises:
        ImageChangedError: It is there with other content.
    """
    folder = Path(image.reference)
    if not folder.is_dir():
        return False
    if tree.digest(read_manifest(folder)) != image.digest:
        raise ImageChangedError(
            f"{folder} has changed since it was taken as the image {image.name!r}. "
            f"Take it as it is now with `pytest-ephemeral bake {image.name}`"
        )
    return True
