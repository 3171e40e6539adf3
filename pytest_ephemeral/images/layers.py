"""Archives of images in parts: what several images have in common is in the store once.

A provider says which spans of an archive are layers. Each is a blob named by the digest of its
bytes, compressed. The archive itself is a record that names its layers and holds the few bytes
between them, so that it comes out as it went in, byte for byte.

The record is written before its layers. Whoever uploads a layer, or removes those that no record
names any more, holds that layer's claim meanwhile: so no layer is removed that a record has begun
to name, whoever is killed and whenever.
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

#: The bytes of a layer that are compressed at once; each such block is a gzip member of its own.
_BLOCK: Final = 4 << 20


class Part(Model, frozen=True, kw_only=True):
    """A part of an archive: a layer, or bytes that only this archive has.

    Attributes:
        layer: The layer's digest.
        content: The bytes, compressed and in Base64, where it is no layer.
    """

    layer: Digest | None = None
    content: str = ""


class Listing(Model, frozen=True, kw_only=True):
    """An archive's parts, in order."""

    parts: list[Part]

    def layers(self) -> list[str]:
        """The layers' digests, each once, sorted."""
        return sorted({part.layer for part in self.parts if part.layer is not None})


class Layers:
    """The layers of one store.

    Args:
        store: Where they are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def has(self, archive: str) -> bool:
        """Whether an archive's record and all of its layers are in the store."""
        try:
            listing = self._read(archive)
        except RecordMissingError:
            return False
        return all(self._store.has(_layer_path(layer)) for layer in listing.layers())

    def add(self, name: str, archive: str, file: Path, layers: Sequence[LayerSpan]) -> None:
        """Put an archive into the store, of its layers only those that are not there.

        Args:
            name: The image's, for who waits for one of its layers.
            archive: The archive's digest.
            file: The archive.
            layers: Where its layers are, in order.
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
                if is_ours:  # a disk may be full: nothing of it is left there
                    with suppress(EphemeralError):
                        self.remove(name, archive)
                raise
        self._create(archive, record)  # someone may have removed it just now, with their image

    def write(self, archive: str, target: Path) -> None:
        """Put an archive together again.

        Raises:
            RecordMissingError: It, or a layer of it, is not in the store.
            ImageChangedError: A layer is not as it was put there.
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
        """Remove an archive, and those of its layers that no other archive has."""
        try:
            layers = self._read(archive).layers()
        except RecordMissingError:
            return
        self._store.delete(_record_path(archive))
        with ExitStack() as claims:
            for layer in layers:  # in one order everywhere: nobody waits for each other
                claims.enter_context(hold_claim(self._store, layer, name, _say_nothing))
            for layer in sorted(set(layers) - self._needed(layers)):
                self._store.delete(_layer_path(layer))

    def _create(self, archive: str, record: bytes) -> bool:
        """Write an archive's record, unless it is there; whether it was not."""
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
        """Which layers archives have; all, where a record of one can't be read."""
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
    """The archive's parts: its layers, and what is between them."""
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
    """A file's bytes from ``start`` on, some megabytes at a time."""
    with file.open("rb") as stream:
        stream.seek(start)
        while size and (block := stream.read(min(size, _BLOCK))):
            size -= len(block)
            yield block


def _in_parallel(pool: ThreadPoolExecutor, file: Path, layer: LayerSpan) -> Iterator[bytes]:
    """A layer's blocks, compressed by all processors, with few of them in memory."""
    waiting: list[Future[bytes]] = []
    for block in _blocks(file, *layer):
        waiting.append(pool.submit(gzip.compress, block, 1, mtime=0))
        if len(waiting) > 2 * (os.cpu_count() or 1):
            yield waiting.pop(0).result()
    for one in waiting:
        yield one.result()


def _unpack(packed: Path, layer: str, target: IO[bytes]) -> bool:
    """Append a layer to a file. Whether it is the one that it should be."""
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
    """Waiting for a layer is not worth a line: whoever has its claim uploads it for us."""
