"""A bundle: one tar file with an image's record, ``image.json``, and its archive."""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import IO, Final

import msgspec

from pytest_ephemeral import files
from pytest_ephemeral.errors import ConfigurationError, ImageChangedError
from pytest_ephemeral.images.key import key
from pytest_ephemeral.models import Image, decode, encode
from pytest_ephemeral.tables import NAME_PATTERN

_RECORD: Final = "image.json"
_CONTENT: Final = "content"


def write(file: Path, image: Image, archive: Path) -> None:
    """Write an image's record and its archive to one file, atomically.

    Raises:
        ConfigurationError: It can't be written.
    """
    if file.is_dir():
        raise ConfigurationError(f"{file} can't be written: it is a folder; name a file in it")
    record = encode(image)
    half = file.with_name(files.TEMPORARY + os.urandom(8).hex())  # a unique name
    try:
        with (
            tarfile.open(half, "w", format=tarfile.PAX_FORMAT) as tar,
            archive.open("rb") as content,
        ):
            tar.addfile(_member(_RECORD, len(record)), io.BytesIO(record))
            tar.addfile(_member(_CONTENT, archive.stat().st_size), content)
        half.replace(file)
    except OSError as error:
        raise ConfigurationError(f"{file} can't be written: {error.strerror}") from error
    finally:
        half.unlink(missing_ok=True)


def read(file: Path, archive: Path) -> Image:
    """Read an image's record from a bundle, and write its archive to a file.

    Raises:
        ConfigurationError: The file can't be read, or is not a bundle.
        ImageChangedError: The record does not match the content.
    """
    try:
        with tarfile.open(file, "r:") as tar:
            image = decode(_read(tar, _RECORD), Image)
            with archive.open("wb") as target, _open_member(tar, _CONTENT) as content:
                shutil.copyfileobj(content, target)
    except OSError as error:
        raise ConfigurationError(f"{file} can't be read: {error.strerror or error}") from error
    except (tarfile.TarError, KeyError, msgspec.MsgspecError) as error:
        raise ConfigurationError(
            f"{file} is not an image that `pytest-ephemeral images export` wrote: {error}"
        ) from error
    found = files.digest_of(files.chunks(archive))
    named = re.match(NAME_PATTERN, image.name)
    if image.archive not in {found, None} or key(image.inputs) != image.key or not named:
        raise ImageChangedError(
            f"{file} was damaged or changed: what is in it is not what its record says. "
            "Export the image again with `pytest-ephemeral images export`"
        )
    return image


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    return member


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    with _open_member(tar, name) as content:
        return content.read()


def _open_member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    content = tar.extractfile(name)
    if content is None:
        raise KeyError(name)
    return content
