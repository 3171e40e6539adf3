"""Check the archive that ``docker save`` writes, and find the layers in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from pytest_ephemeral import files
from pytest_ephemeral.errors import BakeError
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers.abilities import LayerSpan

#: Files of fewer bytes are not stored as layers of their own.
_SMALL: Final = 8 << 10


def find_layers(file: Path) -> list[LayerSpan]:
    """The positions and sizes of the layers in an archive, in order."""
    import tarfile

    with tarfile.open(file, "r:") as tar:
        return [
            LayerSpan(member.offset_data, member.size)
            for member in tar
            if member.isfile() and member.size >= _SMALL
        ]


def check(image: Image, file: Path) -> None:
    """Check that an archive is complete: an engine that fails may just stop writing.

    Raises:
        BakeError: A file is missing, or the archive is of another image.
    """
    import tarfile

    try:
        with tarfile.open(file, "r:") as tar:
            names = set(tar.getnames())
            listing = tar.extractfile("manifest.json")
            (manifest,) = json.load(listing) if listing else [{}]
            config = tar.extractfile(manifest.get("Config", "its configuration"))
            digest = files.digest_of([config.read()] if config else [])
    except (tarfile.TarError, KeyError, ValueError, OSError) as error:
        raise _broken(image, str(error)) from error
    if missing := sorted(
        {manifest.get("Config", "its configuration"), *manifest.get("Layers", ())} - names
    ):
        raise _broken(image, f"{missing[0]} is missing")
    if digest != image.digest:
        raise _broken(image, f"its configuration is {digest}")


def _broken(image: Image, why: str) -> BakeError:
    return BakeError(
        f"the archive of the image {image.name!r} that the container engine wrote is "
        f"incomplete ({why}): check that it has space (`docker system df`), and bake the image "
        "again"
    )
