"""The folder of an image's content, and the path that environments see it at.

Usually both are the tree in this user's root. An image with a ``reference`` is a folder that was
prepared elsewhere; it is used unchanged, and identified by the digest of its content. An image from
another user or machine has another path.
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

#: In an image's handle: its folder was prepared elsewhere, and is used unchanged.
AS_IT_IS: Final = "as-it-is"


def folder_of(reference: str, root: Path) -> Path:
    """The folder of a recipe's ``reference``.

    Raises:
        ConfigurationError: It does not exist.
    """
    folder = (root / reference).absolute()
    if not folder.is_dir():
        raise ConfigurationError(
            f"reference = {reference!r}: the folder {folder} does not exist. A reference is a "
            "folder in which the application is installed already"
        )
    return folder


def read_manifest(folder: Path) -> bytes:
    """The manifest of a folder's current content.

    Raises:
        ImageChangedError: It can't be read completely.
    """
    try:
        return tree.manifest(folder)
    except OSError as error:
        raise ImageChangedError(f"{folder} can't be read completely: {error}") from error


def take(job: BakeJob, folder: Path) -> Image:
    """Describe the current content of a folder as an image."""
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
    """Whether an image's folder exists, with the image's content.

    Raises:
        ImageChangedError: It has other content.
    """
    folder = Path(image.reference)
    if not folder.is_dir():
        return False
    if tree.digest(read_manifest(folder)) != image.digest:
        raise ImageChangedError(
            f"{folder} has changed since it was recorded as the image {image.name!r}. "
            f"Record its new content with `pytest-ephemeral bake {image.name}`"
        )
    return True


def content_of(image: Image) -> Path:
    """The folder with an image's content.

    Raises:
        UnavailableError: It can't be used on this machine.
    """
    return Path(image.reference) if AS_IT_IS in image.handle else Prefix.at(image).tree


def places(image: Image) -> dict[Path, Path]:
    """The tree of an image by the path to mount it at, if that is another; see ``guard.Spec``.

    Raises:
        UnavailableError: It has to be mounted, and nothing can be mounted here.
    """
    if AS_IT_IS in image.handle:
        return {}
    prefix = Prefix.at(image)
    return {Path(image.reference): prefix.tree} if prefix.is_away(image) else {}
