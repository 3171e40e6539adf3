"""A person's yes or no to one environment, made with its link in hand.

One record each, ``approvals/ID.json`` in the store: created once, decided once, by
compare-and-swap. A decision on another machine that sees the store is as good as one on this.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, TypeAlias

import msgspec

from pytest_ephemeral import machine, providers
from pytest_ephemeral.durations import Duration
from pytest_ephemeral.environments.ledger import Ledger
from pytest_ephemeral.errors import (
    ConfigurationError,
    DecidedError,
    NothingMatchedError,
    RecordConflictError,
    RecordExistsError,
    RecordMissingError,
    RejectedError,
    StoreError,
    UnansweredError,
    closest,
)
from pytest_ephemeral.models import Environment, ImageReference, Model, decode, encode
from pytest_ephemeral.promotion import protection
from pytest_ephemeral.store import Store

FOLDER: Final = "approvals/"

#: How long a request holds an environment when nobody waits for the answer.
DEFAULT_WAIT: Final = Duration(24 * 3600)
#: The upper bound: no request holds an environment longer than this after it was first made.
LONGEST_WAIT: Final = Duration(7 * 24 * 3600)
#: How long an environment stays after the last moment of a yes, so that it can be promoted.
AFTER_YES: Final = timedelta(minutes=30)

#: Seconds between two looks at a request.
POLL: Final = 0.5

Decision: TypeAlias = Literal["approved", "rejected", "timed out"]


class Approval(Model, frozen=True, kw_only=True):
    """A request, and what became of it.

    Attributes:
        environment: Its id.
        deadline: From then on it counts as a no.
        expires_at: When the environment would have expired if nobody had asked.
    """

    environment: str
    template: str
    image: ImageReference | None
    url: str
    requested_at: datetime
    requested_by: str
    deadline: datetime
    expires_at: datetime | None
    state: Literal["pending", "approved", "rejected", "timed out"] = "pending"
    decided_at: datetime | None = None
    decided_by: str = ""
    comment: str = ""

    def __str__(self) -> str:
        if self.state == "pending":
            return f"waits for a decision until {self.deadline:%Y-%m-%d %H:%M:%S} UTC"
        if self.state == "timed out":
            return f"nobody decided until {self.deadline:%Y-%m-%d %H:%M:%S} UTC, which means no"
        said = f": {self.comment}" if self.comment else ""
        return f"{self.state} by {self.decided_by} at {self.decided_at:%Y-%m-%d %H:%M:%S} UTC{said}"

    def check(self) -> None:
        """Raise unless it is a yes.

        Raises:
            RejectedError: It is a no.
            UnansweredError: Nobody said anything.
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
        """The approval of the environment of that id, or of the only one whose id begins so.

        Raises:
            NothingMatchedError: Nobody has asked for one; names the closest.
        """
        if found := self.find(id):
            return found
        entries = self.entries()
        matching = [one for one in entries if id and one.environment.startswith(id)]
        if len(matching) == 1:
            return matching[0]
        if matching:
            names = ", ".join(one.environment for one in matching)
            raise NothingMatchedError(f"{id!r} is the beginning of more than one: {names}")
        known = closest(id, [one.environment for one in entries])
        raise NothingMatchedError(
            f"nobody has asked for an approval of {id!r}: `pytest-ephemeral approval request "
            f"{id}` does.{known}"
        )

    def entries(self) -> list[Approval]:
        """All of them, oldest first; a broken record is none."""
        found = []
        for _, data in self._store.records(FOLDER):
            with suppress(msgspec.MsgspecError):
                found.append(decode(data, Approval))
        return sorted(found, key=lambda one: one.requested_at)

    def request(self, environment: Environment, *, deadline: datetime, now: datetime) -> Approval:
        """Ask, or ask again for what is still pending; a decision that was made stands.

        Args:
            environment: What is to be decided on.
            deadline: From then on, no answer is a no.
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
            return self._change(environment.id, deadline=deadline)
        return asked

    def find(self, id: str) -> Approval | None:
        """The approval of exactly that environment, if anybody has asked for one."""
        try:
            return decode(self._store.read(_path(id)).data, Approval)
        except (RecordMissingError, msgspec.MsgspecError):
            return None

    def decide(
        self, id: str, decision: Decision, *, by: str, comment: str = "", now: datetime
    ) -> Approval:
        """Decide. Of many who do so at once, one does.

        Args:
            id: The environment's, or the beginning of it.
            decision: What.
            by: Who.
            comment: Why.
            now: In UTC.

        Returns:
            The decision that stands, which is the same one.

        Raises:
            DecidedError: Another one was made before.
            UnansweredError: Its time was over.
            NothingMatchedError: Nobody has asked.
        """
        found = self.get(id)
        if decision != "timed out" and found.state == "pending" and now >= found.deadline:
            decision, by, comment = "timed out", "", ""
        found = self._change(
            found.environment, state=decision, decided_by=by, comment=comment, decided_at=now
        )
        if found.state == "timed out":
            raise UnansweredError(f"{found.environment}: {found}")
        if found.state != decision:
            raise DecidedError(f"{found.environment} was {found}. One decision stands")
        return found

    def _change(self, id: str, **changes: object) -> Approval:
        """Change a request that is still pending; returns what it is then."""
        while True:
            data, version = self._store.read(_path(id))
            found = decode(data, Approval)
            if found.state != "pending":
                return found
            changed = msgspec.structs.replace(found, **changes)
            try:
                self._store.replace(_path(id), encode(changed), version)
            except RecordConflictError:
                continue
            return changed


def ask(
    ledger: Ledger,
    environment: Environment,
    *,
    wait: Duration,
    publish: Callable[[Environment, str], None],
) -> Approval:
    """Ask for a decision: record it, hold the environment meanwhile, and tell who should know.

    Args:
        ledger: The environment's.
        environment: What is to be decided on.
        wait: How long to wait; no answer means no.
        publish: Told the environment and its link.

    Raises:
        ConfigurationError: Longer than ``LONGEST_WAIT``.
        EphemeralError: The environment is gone, or on another machine.
    """
    if wait > LONGEST_WAIT:
        raise ConfigurationError(f"an approval can be waited for {LONGEST_WAIT} at most")
    status = providers.load(environment.provider).status(environment)
    if status.state != "running":
        raise NothingMatchedError(f"{environment.id} does not run: {status.detail}")
    approvals, now = Approvals(ledger.store), datetime.now(UTC)
    deadline = now + timedelta(seconds=wait)
    if known := approvals.find(environment.id):
        if known.state != "pending":
            return known
        deadline = min(deadline, known.requested_at + timedelta(seconds=LONGEST_WAIT))
    # Held first: nobody shall find a request for what may go with its owner at any moment.
    protection.hold(ledger, environment, deadline + AFTER_YES)
    approval = approvals.request(environment, deadline=deadline, now=now)
    publish(environment, environment.url)
    return approval


def await_decision(
    ledger: Ledger,
    approval: Approval,
    *,
    pause: Callable[[float], object] = time.sleep,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Approval:
    """Wait until somebody decides, or the time is over. Safe to be killed, and to be done again.

    After a no, the environment gets back the expiry it had.

    Args:
        ledger: The environment's.
        approval: A request.
        pause: Waits that many seconds.
        now: In UTC.
    """
    while approval.state == "pending":
        approval = _looked_at(ledger, approval, now())
        if approval.state == "pending":
            pause(POLL)
    if approval.state != "approved" and approval.expires_at is not None:
        protection.let_expire(
            ledger, approval.environment, protection.afterwards(approval.expires_at)
        )
    return approval


def _looked_at(ledger: Ledger, approval: Approval, now: datetime) -> Approval:
    """A request as it is now, decided if nobody else can any more."""
    approvals = Approvals(ledger.store)
    try:
        found = approvals.get(approval.environment)
        if found.state != "pending":
            return found
        if now >= found.deadline:
            return approvals.decide(found.environment, "timed out", by="", now=now)
        if died := _died(ledger, found.environment):
            return approvals.decide(
                found.environment, "rejected", by="pytest-ephemeral", comment=died, now=now
            )
    except (DecidedError, UnansweredError):
        return approvals.get(approval.environment)
    except StoreError:
        if now >= approval.deadline:  # until then, a store that is away may come back
            raise
        return approval
    return found


def _died(ledger: Ledger, id: str) -> str:
    """Why there is nothing to decide on any more."""
    try:
        environment = ledger.get(id)
    except NothingMatchedError:
        return "the environment was destroyed"
    status = providers.load(environment.provider).status(environment)
    return "" if status.state == "running" else f"the environment has stopped: {status.detail}"


def _path(id: str) -> str:
    return f"{FOLDER}{id}.json"
