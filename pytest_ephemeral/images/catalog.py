"""The catalog: a record of every baked image, ``catalog/NAME/HEX.json`` in the store."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import msgspec

from pytest_ephemeral.errors import (
    NothingMatchedError,
    RecordConflictError,
    RecordExistsError,
    RecordMissingError,
    TamperedRecordError,
    closest,
)
from pytest_ephemeral.models import Image, decode, encode
from pytest_ephemeral.store import Store, update

FOLDER: Final = "catalog/"
_SHA256: Final = "sha256:"


class Catalog:
    """The images of one store.

    Attributes:
        broken: The records that the last ``entries`` could not read, by path, with the reasons.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.broken: dict[str, str] = {}

    def entries(self) -> list[Image]:
        """All images, by name, oldest first. Records that can't be read are in ``broken``."""
        found: list[Image] = []
        broken: dict[str, str] = {}
        for path, data in self._store.records(FOLDER):
            try:
                found.append(_decode(path, data))
            except TamperedRecordError as error:
                broken[path] = str(error)
        self.broken = broken
        return sorted(found, key=lambda image: (image.name, image.baked_at))

    def get(self, wanted: str) -> Image:
        """Find the newest image of a name, or an image by a unique prefix of its key.

        Raises:
            NothingMatchedError: There is none, or more than one; the message has similar names.
        """
        entries = self.entries()
        if named := [image for image in entries if image.name == wanted]:
            return named[-1]
        digits = wanted.removeprefix(_SHA256)
        matching = {
            image.key: image
            for image in entries
            if digits and image.key.removeprefix(_SHA256).startswith(digits)
        }
        if len(matching) == 1:
            return next(iter(matching.values()))
        if matching:
            keys = ", ".join(key[:19] for key in matching)
            raise NothingMatchedError(f"{wanted!r} matches several images: {keys}")
        hint = closest(wanted, {image.name for image in entries})
        hint = hint or " There are none: run `pytest-ephemeral bake`"
        raise NothingMatchedError(f"no image {wanted!r} is baked.{hint}")

    def latest(self, name: str) -> Image | None:
        """The newest image of a name; None if there is none."""
        return next((image for image in reversed(self.entries()) if image.name == name), None)

    def find(self, name: str, key: str) -> Image | None:
        """The image of a name and key; None if there is none, or its record can't be read."""
        try:
            return _decode(_path(name, key), self._store.read(_path(name, key)).data)
        except (RecordMissingError, TamperedRecordError):
            return None

    def record(self, image: Image) -> None:
        """Record an image; replaces a record of the same name and key."""
        path, data = _path(image.name, image.key), encode(image)
        while True:
            try:
                self._store.create(path, data)
            except RecordExistsError:
                try:
                    self._store.replace(path, data, self._store.read(path).version)
                except (RecordConflictError, RecordMissingError):
                    continue
            return

    def mark_verified(self, image: Image, commands: Sequence[str]) -> Image:
        """Record the verify commands that have passed, unless the image was baked again."""
        verified = msgspec.structs.replace(image, verified=list(commands))

        def change(data: bytes) -> bytes | None:
            now = _decode(_path(image.name, image.key), data)
            return encode(verified) if now.digest == image.digest else None

        with suppress(RecordMissingError, TamperedRecordError):
            update(self._store, _path(image.name, image.key), change)
        return verified

    def forget(self, image: Image) -> None:
        """Remove an image's record."""
        self._store.delete(_path(image.name, image.key))


def _path(name: str, key: str) -> str:
    return f"{FOLDER}{name}/{key.removeprefix(_SHA256)}.json"


def _decode(path: str, data: bytes) -> Image:
    """Decode a record.

    Raises:
        TamperedRecordError: It can't be read, or its name and key do not match its path.
    """
    try:
        image = decode(data, Image)
    except msgspec.MsgspecError as error:
        raise TamperedRecordError(f"the record {path} can't be read: {error}") from None
    if _path(image.name, image.key) != path:
        raise TamperedRecordError(
            f"the record {path} belongs to another image, {image.name} {image.key}: it was copied "
            "or forged. Find out who wrote it, and remove it"
        )
    return image
