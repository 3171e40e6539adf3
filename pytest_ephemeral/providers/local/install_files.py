"""``files`` of a recipe: what the install script finds beside it, and what of it is in the key."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pytest_ephemeral import files
from pytest_ephemeral.errors import ConfigurationError


def inputs(globs: Sequence[str], root: Path, image: str) -> dict[str, str]:
    """The digest of all files by their paths; nothing where there are no globs.

    Raises:
        ConfigurationError: A glob matches nothing, or leads out of the configuration's folder.
    """
    if not globs:
        return {}
    digest = hashlib.sha256()
    for file in _matches(globs, root, image):
        mode = "x" if file.stat().st_mode & 0o100 else "-"
        content = files.digest_of(files.chunks(file))
        digest.update(f"{file.relative_to(root)}\0{mode}\0{content}\n".encode())
    return {"files": f"sha256:{digest.hexdigest()}"}


def copy(globs: Sequence[str], root: Path, folder: Path, image: str) -> None:
    """Copy the files into a folder, under the same paths."""
    for file in _matches(globs, root, image):
        target = folder / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)


def _matches(globs: Sequence[str], root: Path, image: str) -> Iterator[Path]:
    """Each file once, in a fixed order."""
    found: set[Path] = set()
    for pattern in globs:
        if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise ConfigurationError(
                f"images.{image}.files: {pattern!r} leads out of the configuration's folder"
            )
        matches = list(root.glob(pattern))
        if not matches:
            raise ConfigurationError(f"images.{image}.files: nothing in {root} matches {pattern!r}")
        for match in matches:
            inner = match.rglob("*") if match.is_dir() else [match]
            found |= {file for file in inner if file.is_file()}
    yield from sorted(found)
