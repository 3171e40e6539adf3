"""The ledger: the durable record of every environment, written before anything of it is created.

One JSON file an environment, under ``environments/``. It is removed when nothing of the
environment is left, so what the ledger lists is what may exist.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import msgspec

from pytest_ephemeral.errors import (
    RecordExistsError,
    RecordMissingError,
    TamperedRecordError,
)
from pytest_ephemeral.models import ID_PATTERN, Environment, Model, decode, encode, to_builtins
from pytest_ephemeral.store import Store, by_prefix, update
from pytest_ephemeral.tables import Template

FOLDER: Final = "environments/"

# No vowels, so that an id never spells a word, and no characters that look like others.
_ALPHABET: Final = "23456789bcdfghjkmnpqrstvwxz"


class Record(Model, frozen=True, kw_only=True):
    """An environment, with the request that creates it.

    Attributes:
        environment: As it is now.
        template: The template it was asked for with; ``{env:…}`` stands in it as a reference.
    """

    environment: Environment
    template: dict[str, Any]


class Ledger:
    """The environments of one store.

    Attributes:
        broken: The records that the last ``entries`` left out, by path, each with the reason.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.broken: dict[str, str] = {}

    def create(self, environment: Environment, template: Template) -> None:
        """Record an environment that is about to be created.

        Raises:
            RecordExistsError: Its id is taken.
        """
        record = Record(environment=environment, template=to_builtins(template))
        self.store.create(_path(environment.id), encode(record))

    def change(self, id: str, **changes: Any) -> Environment | None:
        """Change some fields of an environment's record.

        One that was removed meanwhile stays removed.

        Args:
            id: Which.
            changes: Attributes of ``Environment``.

        Returns:
            It, as it is recorded now; None if it was removed.
        """
        return self.change_if(id, lambda _: True, **changes)

    def mark_destroying(self, id: str, still: Callable[[Environment], bool]) -> Environment | None:
        """Record that an environment is being destroyed, if it still has to be.

        Whoever changes its record first is right: one whose expiry is taken away is not condemned,
        and whoever takes the expiry of one away that is marked reads that in it.

        Args:
            id: Which.
            still: Whether it is, by its record.

        Returns:
            It, as it is recorded now; None if it is not to be.

        Raises:
            RecordMissingError: It was removed.
        """
        return self._change(id, still, {"state": "destroying"})

    def change_if(
        self, id: str, still: Callable[[Environment], bool], **changes: Any
    ) -> Environment | None:
        """As ``change``, of a record that is still as it should be; None if it is not."""
        try:
            return self._change(id, still, changes)
        except RecordMissingError:
            return None

    def _change(
        self, id: str, may: Callable[[Environment], bool], changes: dict[str, Any]
    ) -> Environment | None:
        changed: list[Environment] = []

        def change(data: bytes) -> bytes | None:
            record = _decode(_path(id), data)
            changed.clear()
            if not may(record.environment):
                return None
            changed.append(msgspec.structs.replace(record.environment, **changes))
            return encode(msgspec.structs.replace(record, environment=changed[0]))

        update(self.store, _path(id), change)
        return changed[0] if changed else None

    def remove(self, id: str) -> None:
        """Remove the record of an environment that is gone."""
        self.store.delete(_path(id))

    def get(self, id: str) -> Environment:
        """The environment with that id, or with the only id of that prefix.

        Raises:
            NothingMatchedError: There is none, or more than one; names the closest.
            TamperedRecordError: Its record can't be read, or does not fit its path.
        """
        return self.record(id).environment

    def record(self, id: str) -> Record:
        """As ``get``, with the request that created it."""
        if re.fullmatch(ID_PATTERN, id):
            with suppress(RecordMissingError):
                return _decode(_path(id), self.store.read(_path(id)).data)
        ids = [environment.id for environment in self.entries()]
        whole = by_prefix(id, ids, what="environment")
        return _decode(_path(whole), self.store.read(_path(whole)).data)

    def entries(self) -> list[Environment]:
        """All environments, oldest first. Bad records are left out; see ``broken``."""
        found: list[Environment] = []
        broken: dict[str, str] = {}
        for path, data in self.store.records(FOLDER):
            try:
                found.append(_decode(path, data).environment)
            except TamperedRecordError as error:
                broken[path] = str(error)
        self.broken = broken
        return sorted(found, key=lambda one: one.created_at)

    def in_use(self) -> set[str]:
        """The keys of the images that environments use."""
        return {image.key for one in self.entries() for image in one.images}


def register(
    ledger: Ledger, template: Template, describe: Callable[[str], Environment]
) -> Environment:
    """Record a new environment under a unique id.

    Args:
        ledger: Where.
        template: What it is made from.
        describe: Gives the environment for an id, such as ``staging-7f3k2q``.
    """
    while True:
        token = "".join(secrets.choice(_ALPHABET) for _ in range(6))
        environment = describe(f"{template.name}-{token}")
        try:
            ledger.create(environment, template)
        except RecordExistsError:
            continue
        return environment


def _path(id: str) -> str:
    return f"{FOLDER}{id}.json"


def _decode(path: str, data: bytes) -> Record:
    """Decode a record. Its environment must match the record's path.

    Raises:
        TamperedRecordError: It is not.
    """
    try:
        record = decode(data, Record)
    except msgspec.MsgspecError as error:
        raise TamperedRecordError(
            f"the record {path} can't be read: {error}. An environment may still be running: look "
            "for it where its provider runs, and then remove the record by hand"
        ) from None
    if _path(record.environment.id) != path:
        raise TamperedRecordError(
            f"the record {path} belongs to another environment, {record.environment.id}: it was "
            "copied or forged. Nothing it names was touched. Find out who wrote it, and remove it"
        )
    return record
