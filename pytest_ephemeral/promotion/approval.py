"""Manual approval: a person's decision on one environment, made with its link in hand.

One record each, ``approvals/ID.json`` in the store: created once, decided once, by
compare-and-swap. Any machine that sees the store can request and decide.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec.structs import replace

from pytest_ephemeral import machine, providers
from pytest_ephemeral.durations import Duration
from pytest_ephemeral.environments import expiry
from pytest_ephemeral.environments.ledger import Ledger
from pytest_ephemeral.errors import (
    ConfigurationError,
    DecidedError,
    EphemeralError,
    NothingMatchedError,
    RecordExistsError,
    RecordMissingError,
    RejectedError,
    StoreError,
    TamperedRecordError,
    UnansweredError,
    closest,
)
from pytest_ephemeral.models import Environment, Id, ImageReference, Model, decode, encode
from pytest_ephemeral.store import Store, update
from pytest_ephemeral.text import one_line

FOLDER: Final = "approvals/"

#: How long a request is open when nobody waits for the decision.
DEFAULT_WAIT: Final = Duration(24 * 3600)
#: The upper bound: no request is open longer than this after it was first made.
LONGEST_WAIT: Final = Duration(7 * 24 * 3600)
#: How long an environment stays up after its request's deadline, so that it can be promoted.
AFTER_YES: Final = timedelta(minutes=30)

#: Seconds between two reads of a request.
POLL: Final = 0.5

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
        matching = [known for known in entries if id and known.startswith(id)]
        if len(matching) == 1:
            return entries[matching[0]]
        if matching:
            raise NothingMatchedError(f"{id!r} is ambiguous: {', '.join(matching)}")
        known = closest(id, entries)
        raise NothingMatchedError(
            f"no approval of {id!r} was requested: run `pytest-ephemeral approval request "
            f"{id}`.{known}"
        )

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


def ask(
    ledger: Ledger,
    environment: Environment,
    *,
    wait: Duration,
    publish: Callable[[Environment, str], None],
) -> Approval:
    """Request approval: hold the environment, record the request, publish the link.

    Args:
        ledger: Where the environment is recorded.
        environment: What is to be decided on.
        wait: How long the request is open; no response counts as a rejection.
        publish: Receives the environment and its URL.

    Raises:
        ConfigurationError: ``wait`` is longer than ``LONGEST_WAIT``.
        EphemeralError: The environment is gone, or on another machine.
    """
    if wait > LONGEST_WAIT:
        raise ConfigurationError(f"an approval request can be open for {LONGEST_WAIT} at most")
    if reason := providers.load(environment.provider).status(environment).stop_reason():
        raise NothingMatchedError(f"{environment.id} is not running: {reason}")
    approvals, now = Approvals(ledger.store), datetime.now(UTC)
    deadline = now + timedelta(seconds=wait)
    if known := approvals.find(environment.id):
        if known.state != "pending":
            return known
        deadline = min(deadline, known.requested_at + timedelta(seconds=LONGEST_WAIT))
    # Held first: a request for an environment that may end with its owner would be useless.
    expiry.hold(ledger, environment, deadline + AFTER_YES)
    approval = approvals.request(environment, deadline=deadline, now=now)
    publish(environment, environment.url)
    return approval


def decide(
    ledger: Ledger, id: str, decision: Decision, *, by: str, comment: str = "", now: datetime
) -> Approval:
    """Record a decision of a person. What is gone can't be approved.

    Args:
        ledger: Where the environment is recorded.
        id: The environment's id, or a unique prefix of it.
        decision: The decision.
        by: Who decides. Nobody checks this name.
        comment: Why.
        now: In UTC.

    Raises:
        NothingMatchedError: No approval was requested, or the environment is gone.
        DecidedError: It was decided otherwise before.
        UnansweredError: The deadline has passed.
    """
    approvals = Approvals(ledger.store)
    found = approvals.get(id)
    is_open = found.state == "pending" and now < found.deadline
    if decision == "approved" and is_open and (reason := _death_reason(ledger, found.environment)):
        raise NothingMatchedError(f"{found.environment} can't be approved: {reason}")
    return approvals.decide(found.environment, decision, by=one_line(by), comment=comment, now=now)


def await_decision(
    ledger: Ledger,
    approval: Approval,
    *,
    pause: Callable[[float], object] = time.sleep,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Approval:
    """Wait for the decision or the deadline. It can be killed and run again at any time.

    After a rejection, the environment gets back the expiry it had.

    Args:
        ledger: Where the environment is recorded.
        approval: A request.
        pause: Waits that many seconds.
        now: In UTC.
    """
    while approval.state == "pending":
        approval = _refresh_request(ledger, approval, now())
        if approval.state == "pending":
            pause(POLL)
    if approval.state != "approved" and approval.expires_at is not None:
        expiry.rearm(ledger, approval.environment, expiry.earliest_end(approval.expires_at))
    return approval


def _refresh_request(ledger: Ledger, approval: Approval, now: datetime) -> Approval:
    """The request as it is now, decided here if nobody else can decide it any more."""
    approvals = Approvals(ledger.store)
    try:
        found = approvals.get(approval.environment)
        if found.state != "pending":
            return found
        if now >= found.deadline:
            return approvals.decide(found.environment, "timed out", by="", now=now)
        if died := _death_reason(ledger, found.environment):
            return approvals.decide(
                found.environment, "rejected", by="pytest-ephemeral", comment=died, now=now
            )
    except (DecidedError, UnansweredError):
        return approvals.get(approval.environment)
    except StoreError:
        if now >= approval.deadline:  # until then, the store may become reachable again
            raise
        return approval
    return found


def _death_reason(ledger: Ledger, id: str) -> str:
    """Why there is nothing left to decide on; empty while it runs."""
    try:
        environment = ledger.get(id)
    except NothingMatchedError:
        return "the environment was destroyed"
    try:
        reason = providers.load(environment.provider).status(environment).stop_reason()
    except EphemeralError:
        return ""  # it runs on a machine or in an account that can't be reached from here
    return reason and f"the environment has stopped: {reason}"


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
