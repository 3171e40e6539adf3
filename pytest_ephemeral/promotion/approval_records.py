"""The records of approvals, ``approvals/ID.json`` in the store.

There is one for each environment. It is created once and decided once, by compare-and-swap.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec.structs import replace

from pytest_ephemeral import machine
from pytest_ephemeral.errors import (
    DecidedError,
    RecordExistsError,
    RecordMissingError,
    RejectedError,
    TamperedRecordError,
    UnansweredError,
)
from pytest_ephemeral.models import Environment, Id, ImageReference, Model, decode, encode
from pytest_ephemeral.store import Store, by_prefix, update
from pytest_ephemeral.text import one_line

FOLDER: Final = "approvals/"

Decision: TypeAlias = Literal["approved", "rejected", "timed out"]


class Approval(Model, frozen=True, kw_only=True):
    """A request for approval, and its decision.

    Attributes:
        environment: The environment's id.
        image: The environment's first image; None if it has none.
        requested_by: The user who requested it, as ``user@host``.
        deadline: The end of the request; no response until then counts as a rejection.
        expires_at: The environment's expiry before the request; None if it had none.
        decided_by: The name of the person who decided. It is not verified.
    """

    environment: Id
    template: str
    image: ImageReference | None
    url: str
    requested_at: datetime
    requested_by: str
    deadline: datetime
    expires_at: datetime | None
    state: Literal["pending"] | Decision = "pending"
    decided_at: datetime | None = None
    decided_by: str = ""
    comment: str = ""

    def __str__(self) -> str:
        if self.state == "pending":
            return f"waits for a decision until {self.deadline:%Y-%m-%d %H:%M:%S} UTC"
        if self.state == "timed out":
            return f"rejected: no response by {self.deadline:%Y-%m-%d %H:%M:%S} UTC"
        comment = f": {one_line(self.comment)}" if self.comment else ""
        by = f"{one_line(self.decided_by)} (name not verified)"
        return f"{self.state} by {by} at {self.decided_at:%Y-%m-%d %H:%M:%S} UTC{comment}"

    def check(self) -> None:
        """Raise an error if it was rejected or timed out.

        Raises:
            RejectedError: It was rejected.
            UnansweredError: There was no response before the deadline.
        """
        if self.state == "rejected":
            raise RejectedError(f"{self.environment}: {self}")
        if self.state == "timed out":
            raise UnansweredError(f"{self.environment}: {self}")


class Approvals:
    """The approvals of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def get(self, id: str) -> Approval:
        """Find the approval of an environment, by its id or a unique prefix of it.

        Raises:
            NothingMatchedError: No approval was requested; the message has similar ids.
        """
        if found := self.find(id):
            return found
        entries = {one.environment: one for one in self.entries()}
        request = f"`pytest-ephemeral approval request {id}`"
        missing = f"no approval of {id!r} was requested: run {request}."
        return entries[by_prefix(id, entries, what="approval", missing=missing)]

    def entries(self) -> list[Approval]:
        """All approvals, oldest first. Records that can't be read are skipped."""
        found = []
        for path, data in self._store.records(FOLDER):
            with suppress(TamperedRecordError):
                found.append(_decode(path, data))
        return sorted(found, key=lambda one: one.requested_at)

    def request(self, environment: Environment, *, deadline: datetime, now: datetime) -> Approval:
        """Record a request, or change the deadline of a pending one. Never changes a decision.

        Args:
            environment: The environment to decide on.
            deadline: The end of the request; no response until then counts as a rejection.
            now: The current time in UTC.

        Returns:
            The request, or the approval with its decision.
        """
        owner = machine.this_owner("")
        new = Approval(
            environment=environment.id,
            template=environment.template,
            image=environment.image,
            url=environment.url,
            requested_at=now,
            requested_by=f"{owner.user}@{owner.host}",
            deadline=deadline,
            expires_at=environment.expires_at,
        )
        try:
            self._store.create(_path(environment.id), encode(new))
        except RecordExistsError:
            return self._change(environment.id, lambda known: replace(known, deadline=deadline))
        return new

    def find(self, id: str) -> Approval | None:
        """The approval of an environment; None if there is none, or it can't be read."""
        try:
            return _decode(_path(id), self._store.read(_path(id)).data)
        except (RecordMissingError, TamperedRecordError):
            return None

    def decide(
        self, id: str, decision: Decision, *, by: str, comment: str = "", now: datetime
    ) -> Approval:
        """Record a decision. Of several at the same time, the first one counts.

        Args:
            id: The environment's id, or a unique prefix of it.
            decision: The decision.
            by: The name of the person who decides. It is not verified.
            comment: A comment; may be empty.
            now: The current time in UTC.

        Returns:
            The approval with the decision.

        Raises:
            DecidedError: There is another decision already.
            UnansweredError: The deadline has passed.
            NothingMatchedError: No approval was requested.
        """

        def apply(request: Approval) -> Approval:
            if now >= request.deadline:
                return replace(request, state="timed out", decided_at=now)
            if decision == "timed out":
                return request  # the deadline has changed meanwhile
            return replace(request, state=decision, decided_by=by, comment=comment, decided_at=now)

        found = self._change(self.get(id).environment, apply)
        if found.state == "timed out":
            raise UnansweredError(f"{found.environment}: {found}")
        if found.state != decision:
            raise DecidedError(f"{found.environment} was {found}. A decision can't be changed")
        return found

    def _change(self, id: str, change: Callable[[Approval], Approval]) -> Approval:
        """Change a request if it is pending; returns the current record in any case."""
        latest: list[Approval] = []

        def write(data: bytes) -> bytes | None:
            found = _decode(_path(id), data)
            latest[:] = [change(found) if found.state == "pending" else found]
            return None if latest[0] == found else encode(latest[0])

        update(self._store, _path(id), write)
        return latest[0]


def _path(id: str) -> str:
    return f"{FOLDER}{id}.json"


def _decode(path: str, data: bytes) -> Approval:
    """Decode a record. A copy under the path of another environment approves nothing.

    Raises:
        TamperedRecordError: It can't be read, or its environment does not match its path.
    """
    with suppress(msgspec.MsgspecError):
        approval = decode(data, Approval)
        if _path(approval.environment) == path:
            return approval
    raise TamperedRecordError(
        f"the record {path} is broken, copied or forged. Find out who wrote it, and remove it"
    )
