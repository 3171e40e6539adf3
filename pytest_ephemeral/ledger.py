"""The ledger: a record of every environment, in the store.

A record is one JSON file, ``environments/ID.json``. It is written before the environment's first
resource is created, and removed after the last one is gone. So the ledger lists all environments
that may exist.
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
    """An environment and its template.

    Attributes:
        environment: The environment's current state.
        template: The template as written; the values of ``{env:…}`` are not filled in.
    """

    environment: Environment
    template: dict[str, Any]


class Ledger:
    """The environments of one store.

    Attributes:
        broken: The records that the last ``entries`` could not read, by path, with the reasons.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.broken: dict[str, str] = {}

    def create(self, environment: Environment, template: Template) -> None:
        """Record a new environment, before its first resource is created.

        Raises:
            RecordExistsError: There is an environment with this id.
        """
        record = Record(environment=environment, template=to_builtins(template))
        self.store.create(_path(environment.id), encode(record))

    def change(self, id: str, **changes: Any) -> Environment | None:
        """Change attributes of an environment in its record. Does not create a removed record.

        Args:
            id: The environment's id.
            changes: Attributes of ``Environment``.

        Returns:
            The changed environment; None if the record was removed.
        """
        return self.change_if(id, lambda _: True, **changes)

    def mark_destroying(
        self, id: str, condition: Callable[[Environment], bool]
    ) -> Environment | None:
        """Record that an environment is being destroyed, if a condition holds.

        The check and the change are atomic. So of a promotion and a reaper at the same time, the
        first one to change the record wins, and the other one finds that in the record.

        Args:
            id: The environment's id.
            condition: Whether it may be destroyed, given the recorded environment.

        Returns:
            The changed environment; None if the condition does not hold.

        Raises:
            RecordMissingError: The record was removed.
        """
        return self._change(id, condition, {"state": "destroying"})

    def change_if(
        self, id: str, condition: Callable[[Environment], bool], **changes: Any
    ) -> Environment | None:
        """As ``change``, if a condition holds; None if not. The check and the change are atomic."""
        try:
            return self._change(id, condition, changes)
        except RecordMissingError:
            return None

    def _change(
        self, id: str, condition: Callable[[Environment], bool], changes: dict[str, Any]
    ) -> Environment | None:
        changed: list[Environment] = []

        def change(data: bytes) -> bytes | None:
            record = _decode(_path(id), data)
            changed.clear()
            if not condition(record.environment):
                return None
            changed.append(msgspec.structs.replace(record.environment, **changes))
            return encode(msgspec.structs.replace(record, environment=changed[0]))

        update(self.store, _path(id), change)
        return changed[0] if changed else None

    def remove(self, id: str) -> None:
        """Remove the record of an environment of which nothing is left."""
        self.store.delete(_path(id))

    def get(self, id: str) -> Environment:
        """Find an environment by its id or a unique prefix of it.

        Raises:
            NothingMatchedError: There is none, or more than one; the message has similar ids.
            TamperedRecordError: Its record can't be read, or belongs to another environment.
        """
        return self.record(id).environment

    def record(self, id: str) -> Record:
        """As ``get``, with the template."""
        if re.fullmatch(ID_PATTERN, id):
            with suppress(RecordMissingError):
                return _decode(_path(id), self.store.read(_path(id)).data)
        ids = [environment.id for environment in self.entries()]
        whole = by_prefix(id, ids, what="environment")
        return _decode(_path(whole), self.store.read(_path(whole)).data)

    def entries(self) -> list[Environment]:
        """All environments, oldest first. Records that can't be read are in ``broken``."""
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
    """Record a new environment under a new id, such as ``staging-7f3k2q``.

    Args:
        ledger: The ledger.
        template: The environment's template.
        describe: Makes the environment for an id.

    Returns:
        The environment.
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
    """Decode a record.

    Raises:
        TamperedRecordError: It can't be read, or its environment does not match its path.
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
