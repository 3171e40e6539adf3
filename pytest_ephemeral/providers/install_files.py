"""``files`` of a recipe: copied next to the install script, and part of the image's key."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pytest_ephemeral import files
from pytest_ephemeral.errors import ConfigurationError


def digest(globs: Sequence[str], root: Path, image: str) -> str:
    """The digest of all files: of their paths, contents and executable bits.

    Args:
        globs: The recipe's ``files``.
        root: The configuration's folder, to which the globs are relative.
        image: The image's name, for the message.

    Raises:
        ConfigurationError: A glob matches nothing, or leads out of the configuration's folder.
    """
    total = hashlib.sha256()
    for file in find(globs, root, image):
        mode = "x" if file.stat().st_mode & 0o100 else "-"
        content = files.digest_of(files.chunks(file))
        total.update(f"{file.relative_to(root)}\0{mode}\0{content}\n".encode())
    return f"sha256:{total.hexdigest()}"


def copy(globs: Sequence[str], root: Path, folder: Path, image: str) -> None:
    """Copy the files into a folder, with the same paths.

    The other arguments and the errors are those of ``digest``.
    """
    for file in find(globs, root, image):
        target = folder / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)


def pack(globs: Sequence[str], root: Path, image: str) -> bytes:
    """Pack the files into a compressed tar archive, for a bake on another machine.

    The same files give the same bytes, as times and owners are left out. The arguments and the
    errors are those of ``digest``.
    """
    import gzip
    import tarfile

    target = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=target, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for file in find(globs, root, image):
            member = tarfile.TarInfo(str(file.relative_to(root)))
            member.size = file.stat().st_size
            member.mode = 0o755 if file.stat().st_mode & 0o100 else 0o644
            with file.open("rb") as content:
                tar.addfile(member, content)
    return target.getvalue()


def find(globs: Sequence[str], root: Path, image: str) -> Iterator[Path]:
    """Each file once, in a fixed order. The arguments and the errors are those of ``digest``."""
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
