"""Archives of images in the store. The digest is checked whenever an archive is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from pytest_ephemeral import ci, files, providers
from pytest_ephemeral.errors import ConfigurationError, ImageChangedError, ImageMissingError
from pytest_ephemeral.images.layers import Layers
from pytest_ephemeral.images.scratch import scratch_file
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers.abilities import SupportsLayers
from pytest_ephemeral.providers.protocol import Baker
from pytest_ephemeral.store import Store
from pytest_ephemeral.store.directory import DirectoryStore
from pytest_ephemeral.tables import KeepInStore


class Archives:
    """The archives of one store.

    Args:
        store: The store.
        root: The project's folder.
        keep: The setting: which images to keep in the store.
    """

    def __init__(self, store: Store, root: Path, keep: KeepInStore = "auto") -> None:
        self._store = store
        self._root = root
        self._keep = keep
        self._layers = Layers(store)

    def is_wanted(self, image: Image) -> bool:
        """Whether to keep an image's archive in the store.

        With ``auto``, a container image is kept only if another engine may need it: not if it was
        pushed to a registry, and not on a developer's machine with the store in the project's
        folder.
        """
        if is_taken(image) or self._keep == "never":
            return False
        baker = baker_of(image.provider)
        if self._keep == "always" or not isinstance(baker, SupportsLayers):
            return True
        store = self._store
        private = isinstance(store, DirectoryStore) and store.folder.is_relative_to(self._root)
        return not baker.is_pushed(image) and (not private or ci.is_ci(os.environ))

    def has(self, image: Image) -> bool:
        """Whether an image's archive is in the store."""
        return image.archive is not None and (
            self._store.has(archive_path(image)) or self._layers.has(image.archive)
        )

    def add(self, image: Image, archive: Path) -> None:
        """Upload an image's archive, in layers if its provider has layers."""
        baker = baker_of(image.provider)
        layers = baker.find_layers(archive) if isinstance(baker, SupportsLayers) else ()
        if layers and image.archive is not None:
            self._layers.add(image.name, image.archive, archive, layers)
        else:
            self._store.upload(archive_path(image), archive)

    def remove(self, image: Image) -> None:
        """Remove an image's archive from the store, except layers that other images have."""
        self._store.delete(archive_path(image))
        if image.archive is not None:
            self._layers.remove(image.name, image.archive)

    def pack(self, baker: Baker, image: Image) -> Image:
        """Pack an image of this machine, and upload it; returns it with the archive's digest."""
        with scratch_file() as archive:
            baker.pack(image, archive)
            image = msgspec.structs.replace(image, archive=files.digest_of(files.chunks(archive)))
            self.add(image, archive)
        return image

    @contextmanager
    def open(self, image: Image) -> Iterator[Path]:
        """An image's archive as a temporary file: from the store, or packed on this machine.

        Raises:
            ImageMissingError: The image is neither in the store nor on this machine.
            ImageChangedError: The archive's digest differs from the image's record.
        """
        with scratch_file() as archive:
            if self._store.has(archive_path(image)):
                self._store.download(archive_path(image), archive)
            elif image.archive is not None and self._layers.has(image.archive):
                self._layers.write(image.archive, archive)
            elif baker_of(image.provider).present(image):
                baker_of(image.provider).pack(image, archive)
            else:
                raise self.missing_error(image)
            found = files.digest_of(files.chunks(archive))
            if image.archive not in {found, None}:
                raise ImageChangedError(
                    f"the archive of the image {image.name!r} in the store {self._store.url}, "
                    f"{archive_path(image)}, is now {found}. Remove it, and bake the image again "
                    f"with `pytest-ephemeral bake {image.name} --force`"
                )
            yield archive

    def missing_error(self, image: Image) -> ImageMissingError:
        """The error for an image whose content is missing."""
        baker = baker_of(image.provider)
        reason = baker.explain_missing(image) if isinstance(baker, SupportsLayers) else ""
        return ImageMissingError(
            f"the content of the image {image.name!r} ({image.key[:19]}…) is neither here nor in "
            f"the store {self._store.url}{reason and f'; {reason}'}. Bake it again with "
            f"`pytest-ephemeral bake {image.name} --force`, into the same store"
        )


def is_taken(image: Image) -> bool:
    """Whether an image was not baked, but is a ``reference`` to one that was made elsewhere."""
    return "reference" in image.inputs


def archive_path(image: Image) -> str:
    """The archive's path in the store; without an archive, a path that never exists."""
    return f"images/{(image.archive or 'none').removeprefix('sha256:')}"


def baker_of(provider: str) -> Baker:
    """Load a provider that bakes images.

    Raises:
        ConfigurationError: The provider does not bake images.
    """
    baker: Any = providers.load(provider)
    if not isinstance(baker, Baker):
        raise ConfigurationError(f"the provider {provider!r} bakes no images")
    return baker
