"""Archives of images in the store. Their digests are checked whenever they are read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from pytest_ephemeral import files, machine, providers
from pytest_ephemeral.errors import ConfigurationError, ImageChangedError, ImageMissingError
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers.protocol import Baker
from pytest_ephemeral.store import Store


class Archives:
    """The archives of one store.

    Args:
        store: Where they are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def has(self, image: Image) -> bool:
        """Whether an image's archive is in the store."""
        return self._store.has(archive_path(image))

    def add(self, image: Image, archive: Path) -> None:
        """Put an image's archive into the store."""
        self._store.upload(archive_path(image), archive)

    def remove(self, image: Image) -> None:
        """Remove an image's archive from the store."""
        self._store.delete(archive_path(image))

    def pack(self, baker: Baker, image: Image) -> Image:
        """Put the content of an image that is here into the store, and name its archive in it."""
        with scratch_file() as archive:
            baker.pack(image, archive)
            image = msgspec.structs.replace(image, archive=files.digest_of(files.chunks(archive)))
            self.add(image, archive)
        return image

    @contextmanager
    def open(self, image: Image) -> Iterator[Path]:
        """An image's archive as a file: from the store, or packed from what is here.

        Raises:
            ImageMissingError: Its content is neither in the store nor here.
            ImageChangedError: The archive is not what the image's record says.
        """
        with scratch_file() as archive:
            if self.has(image):
                self._store.download(archive_path(image), archive)
            elif baker_of(image.provider).present(image):
                baker_of(image.provider).pack(image, archive)
            else:
                raise self.missing_error(image)
            found = files.digest_of(files.chunks(archive))
            if found != image.archive:
                raise ImageChangedError(
                    f"the archive of the image {image.name!r} in the store {self._store.url}, "
                    f"{archive_path(image)}, is now {found}. Remove it, and bake the image again "
                    f"with `pytest-ephemeral bake {image.name} --force`"
                )
            yield archive

    def missing_error(self, image: Image) -> ImageMissingError:
        """The error for an image whose content can't be had."""
        return ImageMissingError(
            f"the content of the image {image.name!r} ({image.key[:19]}…) is neither here nor in "
            f"the store {self._store.url}. Bake it again with "
            f"`pytest-ephemeral bake {image.name} --force`"
        )


def archive_path(image: Image) -> str:
    """The archive's path in the store; without an archive, a path that never exists."""
    return f"images/{(image.archive or 'none').removeprefix('sha256:')}"


def baker_of(provider: str) -> Baker:
    """The provider of that name, if it bakes images.

    Raises:
        ConfigurationError: It does not.
    """
    baker: Any = providers.load(provider)
    if not isinstance(baker, Baker):
        raise ConfigurationError(f"the provider {provider!r} bakes no images")
    return baker


@contextmanager
def scratch_file() -> Iterator[Path]:
    """A temporary file for an archive; those of processes that were killed are removed."""
    folder = machine.state_directory() / "transfers"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        pid = left.name.partition("-")[0]
        if pid.isdigit() and not machine.read_process_start(int(pid)):
            left.unlink(missing_ok=True)
    file = folder / f"{os.getpid()}-{os.urandom(4).hex()}"
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)
