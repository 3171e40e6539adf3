"""The records of approvals, ``approvals/ID.json`` in the store.

One for each environment: created once, decided once, by compare-and-swap.
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
        deadline: From then on, no response counts as a rejection.
        expires_at: The environment's expiry before the request moved it.
        decided_by: The name that was given; nobody checks it.
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
            deadline = f"{self.deadline:%Y-%m-%d %H:%M:%S} UTC"
            return f"rejected: nobody responded before {deadline}"
        comment = f": {one_line(self.comment)}" if self.comment else ""
        by = f"{one_line(self.decided_by)} (name not verified)"
        return f"{self.state} by {by} at {self.decided_at:%Y-%m-%d %H:%M:%S} UTC{comment}"

    def check(self) -> None:
        """Raise unless it is approved.

        Raises:
            RejectedError: It was rejected.
            UnansweredError: Nobody responded in time.
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
        """The approval of one environment, by its id or a unique prefix of it.

        Raises:
            NothingMatchedError: None was requested; names the closest.
        """
        if found := self.find(id):
            return found
        entries = {one.environment: one for one in self.entries()}
        request = f"`pytest-ephemeral approval request {id}`"
        missing = f"no approval of {id!r} was requested: run {request}."
        return entries[by_prefix(id, entries, what="approval", missing=missing)]

    def entries(self) -> list[Approval]:
        """All of them, oldest first; bad records are skipped."""
        found = []
        for path, data in self._store.records(FOLDER):
            with suppress(TamperedRecordError):
                found.append(_decode(path, data))
        return sorted(found, key=lambda one: one.requested_at)

    def request(self, environment: Environment, *, deadline: datetime, now: datetime) -> Approval:
        """Request approval, or move the deadline of a pending request. A decision stands.

        Args:
            environment: What is to be decided on.
            deadline: From then on, no response counts as a rejection.
            now: In UTC.
        """
        owner = machine.this_owner("")
        asked = Approval(
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
            self._store.create(_path(environment.id), encode(asked))
        except RecordExistsError:
            return self._change(environment.id, lambda known: replace(known, deadline=deadline))
        return asked

    def find(self, id: str) -> Approval | None:
        """The approval of exactly that environment, if one was requested. A bad record is none."""
        try:
            return _decode(_path(id), self._store.read(_path(id)).data)
        except (RecordMissingError, TamperedRecordError):
            return None

    def decide(
        self, id: str, decision: Decision, *, by: str, comment: str = "", now: datetime
    ) -> Approval:
        """Record a decision. Of several at once, the first one stands.

        Args:
            id: The environment's id, or a unique prefix of it.
            decision: The decision.
            by: Who decides. Nobody checks this name.
            comment: Why.
            now: In UTC.

        Returns:
            The approval, decided.

        Raises:
            DecidedError: It was decided otherwise before.
            UnansweredError: The deadline has passed.
            NothingMatchedError: No approval was requested.
        """

        def apply(request: Approval) -> Approval:
            if now >= request.deadline:
                return replace(request, state="timed out", decided_at=now)
            if decision == "timed out":
                return request  # the deadline was moved meanwhile
            return replace(request, state=decision, decided_by=by, comment=comment, decided_at=now)

        found = self._change(self.get(id).environment, apply)
        if found.state == "timed out":
            raise UnansweredError(f"{found.environment}: {found}")
        if found.state != decision:
            raise DecidedError(f"{found.environment} was {found}. A decision can't be changed")
        return found

    def _change(self, id: str, change: Callable[[Approval], Approval]) -> Approval:
        """Change a request that is still pending; returns it as it is afterwards."""
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
    """Decode an approval. Its environment must match the record's path, or it approves nothing."""
    with suppress(msgspec.MsgspecError):
        approval = decode(data, Approval)
        if _path(approval.environment) == path:
            return approval
    raise TamperedRecordError(
        f"the record {path} is broken, copied or forged. Find out who wrote it, and remove it"
    )
