"""Check that a store supports conditional writes, by a test record."""

from __future__ import annotations

import os
from typing import Final

from pytest_ephemeral.errors import RecordConflictError, RecordExistsError, StoreError
from pytest_ephemeral.store import Store

#: The folder of test records in the store.
FOLDER: Final = "probe"


def check_conditions(store: Store) -> None:
    """Check that a store refuses to create a record twice, and to change an old version.

    Some services with S3's protocol ignore ``If-None-Match`` and ``If-Match``. Then two runs could
    launch environments with the same id, and one promotion could undo another.

    Raises:
        StoreError: The store can't be written to, or does not refuse.
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
        f"the store {store.url} {what}: its server ignores {header}, so two runs at the same time "
        "would damage each other's records. Check AWS_ENDPOINT_URL; use a newer version of the "
        "server, or another one"
    )
