"""Where the content of an image is, and where it is to be seen.

That is simple for most. Some images are folders that someone else has prepared: they are used as
they are, pinned by their content. Others were baked by another user of this machine, or elsewhere.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pytest_ephemeral.errors import ConfigurationError, ImageChangedError
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers.local import tree
from pytest_ephemeral.providers.local.prefix import Prefix
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
            f"the image's reference {reference!r} is not a folder: {folder} does not exist. A "
            "reference is a folder that was prepared elsewhere"
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
        raise ImageChangedError(f"{folder} can't be read completely: {error}") from error


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


def content_of(image: Image) -> Path:
    """The folder with an image's content.

    Raises:
        UnavailableError: It can't be used here.
    """
    return Path(image.reference) if AS_IT_IS in image.handle else Prefix.at(image).tree


def places(image: Image) -> dict[Path, Path]:
    """Where environments see the tree of an image, if that is not where it is; see ``guard.Spec``.

    Raises:
        UnavailableError: It has to be seen elsewhere, and nothing can be mounted here.
    """
    if AS_IT_IS in image.handle:
        return {}
    prefix = Prefix.at(image)
    return {Path(image.reference): prefix.tree} if prefix.is_away(image) else {}
