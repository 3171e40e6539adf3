"""Whether a store keeps what everything else relies on: tried on a record of its own."""

from __future__ import annotations

import os
from typing import Final

from pytest_ephemeral.errors import RecordConflictError, RecordExistsError, StoreError
from pytest_ephemeral.store import Store

#: Where the record is that a store is tried with.
FOLDER: Final = "probe"


def check_conditions(store: Store) -> None:
    """Write a record twice, and change it twice, as two who do not know of each other would.

    Some endpoints that speak S3's protocol ignore ``If-None-Match`` and ``If-Match``: then two runs
    launch under one id, and one promotion undoes another.

    Raises:
        StoreError: It can't be written, or does not refuse the second time.
    """
    path = f"{FOLDER}/{os.urandom(8).hex()}"
    first = store.create(path, b"first")
    try:
        _check(store, path, first)
    finally:
        store.delete(path)


def _check(store: Store, path: str, first: str) -> None:
    if not _refuses_creation(store, path):
        raise _unsafe(store, "replaced a record that was to be created", "If-None-Match")
    store.replace(path, b"third", store.read(path).version)
    try:
        store.replace(path, b"fourth", first)
    except RecordConflictError:
        return
    raise _unsafe(store, "changed a record that was changed before", "If-Match")


def _refuses_creation(store: Store, path: str) -> bool:
    try:
        store.create(path, b"second")
    except RecordExistsError:
        return True
    return False


def _unsafe(store: Store, what: str, header: str) -> StoreError:
    return StoreError(
        f"the store {store.url} {what}: what answers there ignores {header}, so that two runs at "
        "once would damage each other's records. See AWS_ENDPOINT_URL, and take a newer version, "
        "or another service"
    )
