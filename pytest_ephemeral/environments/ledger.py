"""The durable record of every environment, written before anything of it is created.

One JSON file an environment, under ``environments/``. It is removed when nothing of the
environment is left, so what the ledger lists is what may exist.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, Final

import msgspec

from pytest_ephemeral.errors import (
    NothingMatchedError,
    RecordConflictError,
    RecordExistsError,
    RecordMissingError,
    closest,
)
from pytest_ephemeral.models import Environment, Model, decode, encode, to_builtins
from pytest_ephemeral.store import Store
from pytest_ephemeral.tables import Template

FOLDER: Final = "environments/"

# No vowels, so that an id never spells anything, and nothing that is read as something else.
_ALPHABET: Final = "23456789bcdfghjkmnpqrstvwxz"


class Record(Model, frozen=True, kw_only=True):
    """An environment, with the request it is made from.

    Attributes:
        environment: As it is now.
        template: The template it was asked for with; ``{env:…}`` stands in it as a reference.
    """

    environment: Environment
    template: dict[str, Any]


class Ledger:
    """The environments of one store.

    Attributes:
        broken: Paths of records that could not be read, of the last ``entries``.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.broken: list[str] = []

    def create(self, environment: Environment, template: Template) -> None:
        """Record an environment that is about to be made.

        Raises:
            RecordExistsError: Its id is taken.
        """
        record = Record(environment=environment, template=to_builtins(template))
        self.store.create(_path(environment.id), encode(record))

    def change(self, id: str, **changes: Any) -> Environment | None:
        """Record what has become of an environment; what is not named stays as it is.

        One that was removed meanwhile stays removed.

        Args:
            id: Which.
            changes: Attributes of ``Environment``.

        Returns:
            It, as it is recorded now; None if it was removed.
        """
        try:
            return self._change(id, lambda _: True, changes)
        except RecordMissingError:
            return None

    def condemn(self, id: str, still: Callable[[Environment], bool]) -> Environment | None:
        """Record that an environment is being destroyed, if it is still to be.

        Whoever changes its record first is right: one whose expiry is taken away is not condemned,
        and whoever takes the expiry of one away that is condemned reads that in it.

        Args:
            id: Which.
            still: Whether it is, by its record.

        Returns:
            It, as it is recorded now; None if it is not to be.

        Raises:
            RecordMissingError: It was removed.
        """
        return self._change(id, still, {"state": "destroying"})

    def _change(
        self, id: str, may: Callable[[Environment], bool], changes: dict[str, Any]
    ) -> Environment | None:
        while True:
            try:
                data, version = self.store.read(_path(id))
                record = decode(data, Record)
                if not may(record.environment):
                    return None
                environment = msgspec.structs.replace(record.environment, **changes)
                changed = msgspec.structs.replace(record, environment=environment)
                self.store.replace(_path(id), encode(changed), version)
            except RecordConflictError:
                continue
            return environment

    def remove(self, id: str) -> None:
        """Forget an environment of which nothing is left."""
        self.store.delete(_path(id))

    def get(self, id: str) -> Environment:
        """The environment of that id, or of the only id that begins so.

        Raises:
            NothingMatchedError: There is none, or more than one; names the closest.
        """
        return self.record(id).environment

    def record(self, id: str) -> Record:
        """As ``get``, with the request it was made from."""
        try:
            return decode(self.store.read(_path(id)).data, Record)
        except (RecordMissingError, msgspec.MsgspecError):
            pass
        found = self.entries()
        matching = [one for one in found if id and one.id.startswith(id)]
        if len(matching) == 1:
            return decode(self.store.read(_path(matching[0].id)).data, Record)
        if matching:
            names = ", ".join(one.id for one in matching)
            raise NothingMatchedError(f"{id!r} is the beginning of more than one: {names}")
        raise NothingMatchedError(f"no environment {id!r}.{closest(id, [one.id for one in found])}")

    def entries(self) -> list[Environment]:
        """All environments, oldest first. Broken records are stepped over; see ``broken``."""
        found, self.broken = [], []
        for path, data in self.store.records(FOLDER):
            try:
                found.append(decode(data, Record).environment)
            except msgspec.MsgspecError:
                self.broken.append(path)
        return sorted(found, key=lambda one: one.created_at)

    def in_use(self) -> set[str]:
        """The keys of the images that environments run from."""
        return {one.image.key for one in self.entries() if one.image is not None}


def register(
    ledger: Ledger, template: Template, describe: Callable[[str], Environment]
) -> Environment:
    """Record a new environment under an id that nobody else has.

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
