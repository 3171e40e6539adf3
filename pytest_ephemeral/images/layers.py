"""Archives of images as layers: a layer that several images have is in the store once.

The provider finds the layers in an archive. Each layer is a compressed blob, named by the digest of
its bytes. A record lists the layers of an archive, and has the few bytes between them. So the
archive can be restored byte for byte.

The record is written before its layers are uploaded. A process holds the claim of a layer while it
uploads it, and while it removes it because no record lists it. So a layer that a new record lists
is never removed, even if a process is killed.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Final

import msgspec

from pytest_ephemeral import files
from pytest_ephemeral.errors import (
    EphemeralError,
    ImageChangedError,
    RecordExistsError,
    RecordMissingError,
)
from pytest_ephemeral.images.claim import hold_claim
from pytest_ephemeral.images.scratch import scratch_file
from pytest_ephemeral.models import Digest, Model, decode, encode
from pytest_ephemeral.providers.abilities import LayerSpan
from pytest_ephemeral.store import Store

_FOLDER: Final = "images"

#: The bytes of a layer in one gzip member. The members are compressed in parallel.
_BLOCK: Final = 4 << 20


class Part(Model, frozen=True, kw_only=True):
    """A part of an archive: a layer, or the bytes between two layers.

    Attributes:
        layer: The layer's digest; None if this is no layer.
        content: The bytes between two layers, compressed with zlib and in Base64.
    """

    layer: Digest | None = None
    content: str = ""


class Listing(Model, frozen=True, kw_only=True):
    """An archive's parts, in order."""

    parts: list[Part]

    def layers(self) -> list[str]:
        """The digests of the layers, sorted, without duplicates."""
        return sorted({part.layer for part in self.parts if part.layer is not None})


class Layers:
    """The layers of one store.

    Args:
        store: The store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def has(self, archive: str) -> bool:
        """Whether an archive's record and all its layers are in the store."""
        try:
            listing = self._read(archive)
        except RecordMissingError:
            return False
        return all(self._store.has(_layer_path(layer)) for layer in listing.layers())

    def add(self, name: str, archive: str, file: Path, layers: Sequence[LayerSpan]) -> None:
        """Upload an archive's record, and the layers that are not in the store.

        Args:
            name: The image's name, for messages of processes that wait for a layer.
            archive: The archive's digest.
            file: The archive's file.
            layers: The positions and sizes of its layers, in order.
        """
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            digests = list(pool.map(lambda layer: _digest(file, layer), layers))
            record = encode(Listing(parts=list(_parts(file, layers, digests))))
            is_ours = self._create(archive, record)
            try:
                for digest, layer in dict(zip(digests, layers, strict=True)).items():
                    with hold_claim(self._store, digest, name, _say_nothing):
                        if not self._store.has(_layer_path(digest)):
                            self._upload(digest, file, layer, pool)
            except BaseException:
                if is_ours:  # if the disk is full, for example: leave nothing there
                    with suppress(EphemeralError):
                        self.remove(name, archive)
                raise
        self._create(archive, record)  # again: another process may have removed it meanwhile

    def write(self, archive: str, target: Path) -> None:
        """Restore an archive from its layers.

        Args:
            archive: The archive's digest.
            target: The file to write.

        Raises:
            RecordMissingError: The record or a layer is not in the store.
            ImageChangedError: The record can't be read, or a layer has another digest.
        """
        with target.open("wb") as file, scratch_file() as packed:
            for part in self._read(archive).parts:
                if part.layer is None:
                    file.write(zlib.decompress(base64.b64decode(part.content)))
                    continue
                self._store.download(_layer_path(part.layer), packed)
                if not _unpack(packed, part.layer, file):
                    raise ImageChangedError(
                        f"{_layer_path(part.layer)} in the store {self._store.url} is not what was "
                        "put there. Remove it, and bake the images that have this layer again with "
                        "`pytest-ephemeral bake --force`"
                    )

    def remove(self, name: str, archive: str) -> None:
        """Remove an archive, and the layers that no other archive has."""
        try:
            layers = self._read(archive).layers()
        except RecordMissingError:
            return
        self._store.delete(_record_path(archive))
        with ExitStack() as claims:
            for layer in layers:  # sorted, so that two processes can't deadlock
                claims.enter_context(hold_claim(self._store, layer, name, _say_nothing))
            for layer in sorted(set(layers) - self._needed(layers)):
                self._store.delete(_layer_path(layer))

    def _create(self, archive: str, record: bytes) -> bool:
        """Write an archive's record; returns False if there is one already."""
        try:
            self._store.create(_record_path(archive), record)
        except RecordExistsError:
            return False
        return True

    def _read(self, archive: str) -> Listing:
        data = self._store.read(_record_path(archive)).data
        try:
            return decode(data, Listing)
        except msgspec.MsgspecError as error:
            raise ImageChangedError(
                f"{_record_path(archive)} in the store {self._store.url} can't be read: {error}"
            ) from error

    def _needed(self, layers: Sequence[str]) -> set[str]:
        """The layers that archives have; all the given ones if a record can't be read."""
        needed: set[str] = set()
        for path, data in self._store.records(_FOLDER):
            if not path.endswith(".json"):
                continue
            try:
                needed.update(decode(data, Listing).layers())
            except msgspec.MsgspecError:
                return set(layers)
        return needed

    def _upload(self, digest: str, file: Path, layer: LayerSpan, pool: ThreadPoolExecutor) -> None:
        with scratch_file() as packed:
            with packed.open("wb") as target:
                for block in _in_parallel(pool, file, layer):
                    target.write(block)
            self._store.upload(_layer_path(digest), packed)


def _parts(file: Path, layers: Sequence[LayerSpan], digests: Sequence[str]) -> Iterator[Part]:
    """The parts of an archive: its layers, and the bytes between them."""
    end = 0
    for layer, digest in zip(layers, digests, strict=True):
        yield from _between(file, end, layer.start)
        yield Part(layer=digest)
        end = layer.start + layer.size
    yield from _between(file, end, file.stat().st_size)


def _between(file: Path, start: int, end: int) -> Iterator[Part]:
    if start < end:
        content = b"".join(_blocks(file, start, end - start))
        yield Part(content=base64.b64encode(zlib.compress(content)).decode())


def _digest(file: Path, layer: LayerSpan) -> str:
    return files.digest_of(_blocks(file, *layer))


def _blocks(file: Path, start: int, size: int) -> Iterator[bytes]:
    """A span of a file, in blocks of a few megabytes."""
    with file.open("rb") as stream:
        stream.seek(start)
        while size and (block := stream.read(min(size, _BLOCK))):
            size -= len(block)
            yield block


def _in_parallel(pool: ThreadPoolExecutor, file: Path, layer: LayerSpan) -> Iterator[bytes]:
    """A layer's blocks, compressed in parallel, with a limited number in memory."""
    waiting: list[Future[bytes]] = []
    for block in _blocks(file, *layer):
        waiting.append(pool.submit(gzip.compress, block, 1, mtime=0))
        if len(waiting) > 2 * (os.cpu_count() or 1):
            yield waiting.pop(0).result()
    for one in waiting:
        yield one.result()


def _unpack(packed: Path, layer: str, target: IO[bytes]) -> bool:
    """Append a layer to a file; returns whether its digest is right."""
    digest = hashlib.sha256()
    try:
        with gzip.open(packed) as content:
            while block := content.read(_BLOCK):
                digest.update(block)
                target.write(block)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return False
    return digest.hexdigest() == layer.removeprefix("sha256:")


def _record_path(archive: str) -> str:
    return f"{_FOLDER}/{archive.removeprefix('sha256:')}.json"


def _layer_path(digest: str) -> str:
    return f"layers/{digest.removeprefix('sha256:')}"


def _say_nothing(line: str) -> None:
    """No message while waiting for a layer: the process that holds its claim uploads it."""
