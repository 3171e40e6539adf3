"""Claims: locks in the store, so that only one process bakes an image at a time.

A claim is a record, and holds for all machines that share the store. Its owner renews it during the
bake. Another process takes it over by compare-and-swap if the owner is dead, or is on another
machine and has stopped to renew it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from threading import Event, Thread
from typing import Final

import msgspec

from pytest_ephemeral import machine
from pytest_ephemeral.errors import (
    RecordConflictError,
    RecordExistsError,
    RecordMissingError,
    StoreError,
    UnavailableError,
)
from pytest_ephemeral.models import Model, Owner, decode, encode
from pytest_ephemeral.store import Store, Versioned

POLL_SECONDS: Final = 0.2
RENEW_SECONDS: Final = 5.0
#: Seconds without a renewal after which the claim of another machine expires. The waiting process
#: measures them with its own clock, because the clocks of two machines may differ.
SILENT_SECONDS: Final = 60.0
SAY_AGAIN_SECONDS: Final = 10.0


class BakeClaim(Model, frozen=True, kw_only=True):
    """The record of a claim.

    Attributes:
        owner: The process that bakes the image.
        image: The image's name.
        since: When the bake began.
        renewed: How often it was renewed.
    """

    owner: Owner
    image: str
    since: datetime
    renewed: int = 0


@contextmanager
def hold_claim(store: Store, key: str, image: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the claim on an image during the block; wait while another process holds it.

    Args:
        store: The store.
        key: The image's key.
        image: The image's name, for messages.
        say: Receives progress while waiting.
    """
    path = f"bakes/{key.removeprefix('sha256:')}.json"
    claim = BakeClaim(owner=machine.this_owner("bake"), image=image, since=datetime.now(UTC))
    held = _Held(store, path, claim, _acquire(store, path, claim, say))
    renewing = Thread(target=held.renew, name=f"bakes {image}", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        held.done.set()
        renewing.join()
        held.release()


class _Held:
    """A claim that this process holds."""

    def __init__(self, store: Store, path: str, claim: BakeClaim, version: str) -> None:
        self.done = Event()
        self._store = store
        self._path = path
        self._claim = claim
        self._version = version

    def renew(self) -> None:
        while not self.done.wait(RENEW_SECONDS):
            claim = msgspec.structs.replace(self._claim, renewed=self._claim.renewed + 1)
            try:
                self._version = self._store.replace(self._path, encode(claim), self._version)
            except RecordConflictError:
                return  # another process has taken it over: this machine was suspended
            except (StoreError, UnavailableError):
                continue  # the store may be reachable again before the claim expires
            self._claim = claim

    def release(self) -> None:
        """Release the claim, unless another process has taken it over."""
        with suppress(RecordMissingError):
            if self._store.read(self._path).version == self._version:
                self._store.delete(self._path)


def _acquire(store: Store, path: str, claim: BakeClaim, say: Callable[[str], None]) -> str:
    """Create the claim, or take over one that has expired; returns the record's version."""
    started = changed = time.monotonic()
    said = float("-inf")
    seen: Versioned | None = None
    while True:
        try:
            return store.create(path, encode(claim))
        except RecordExistsError:
            pass
        with suppress(RecordMissingError, RecordConflictError):
            found, now = store.read(path), time.monotonic()
            if seen is None or found.version != seen.version:
                seen, changed = found, now
            if _void(found.data, now - changed):
                return store.replace(path, encode(claim), found.version)
            if now - said > SAY_AGAIN_SECONDS:
                say(_describe_wait(found.data, now - started))
                said = now
            time.sleep(POLL_SECONDS)


def _void(data: bytes, silent: float) -> bool:
    try:
        alive = machine.is_alive(decode(data, BakeClaim).owner)
    except msgspec.MsgspecError:
        alive = None  # an unreadable record: only its renewals tell whether the owner is alive
    return silent > SILENT_SECONDS if alive is None else not alive


def _describe_wait(data: bytes, seconds: float) -> str:
    try:
        claim = decode(data, BakeClaim)
    except msgspec.MsgspecError:
        return f"waiting for another process, whose claim can't be read, {seconds:.0f} s"
    return f"waiting for {claim.owner} to bake {claim.image}, {seconds:.0f} s"
