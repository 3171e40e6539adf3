"""Manual approval: a person opens an environment's link, and approves or rejects it.

Every machine with access to the store can request approvals and record decisions; see
``approval_records``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from pytest_ephemeral import providers
from pytest_ephemeral.durations import Duration
from pytest_ephemeral.environments import expiry
from pytest_ephemeral.errors import (
    ConfigurationError,
    DecidedError,
    EphemeralError,
    NothingMatchedError,
    StoreError,
    UnansweredError,
)
from pytest_ephemeral.ledger import Ledger
from pytest_ephemeral.models import Environment
from pytest_ephemeral.promotion.approval_records import Approval, Approvals, Decision
from pytest_ephemeral.text import one_line

#: How long a request is open by default.
DEFAULT_WAIT: Final = Duration(24 * 3600)
#: The longest time that a request can be open, from its first record on.
LONGEST_WAIT: Final = Duration(7 * 24 * 3600)
#: How long an environment stays up after its request's deadline, for its promotion.
AFTER_YES: Final = timedelta(minutes=30)

#: Seconds between two reads of a request.
POLL: Final = 0.5


def ask(
    ledger: Ledger,
    environment: Environment,
    *,
    wait: Duration,
    publish: Callable[[Environment, str], None],
) -> Approval:
    """Request approval: keep the environment up, record the request, publish the link.

    Args:
        ledger: The ledger with the environment's record.
        environment: The environment to decide on.
        wait: How long the request is open; no response counts as a rejection.
        publish: Publishes the environment's URL.

    Returns:
        The request; a decided one if there is a decision already.

    Raises:
        ConfigurationError: ``wait`` is longer than ``LONGEST_WAIT``.
        EphemeralError: The environment is gone, or runs on another machine.
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
    # First keep it up: it must not end with its owner process while the request is open.
    expiry.hold(ledger, environment, deadline + AFTER_YES)
    approval = approvals.request(environment, deadline=deadline, now=now)
    publish(environment, environment.url)
    return approval


def decide(
    ledger: Ledger, id: str, decision: Decision, *, by: str, comment: str = "", now: datetime
) -> Approval:
    """Record a decision. An environment that has stopped can't be approved.

    Args:
        ledger: The ledger with the environment's record.
        id: The environment's id, or a unique prefix of it.
        decision: The decision.
        by: The name of the person who decides. It is not verified.
        comment: A comment; may be empty.
        now: The current time in UTC.

    Returns:
        The approval with the decision.

    Raises:
        NothingMatchedError: No approval was requested, or the environment is gone.
        DecidedError: There is another decision already.
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
    """Wait for the decision or the deadline.

    This process can be killed at any time, and the wait continued by another call. After a
    rejection, the environment gets its earlier expiry back.

    Args:
        ledger: The ledger with the environment's record.
        approval: The request.
        pause: Waits for a number of seconds.
        now: Returns the current time in UTC.

    Returns:
        The approval with the decision.
    """
    while approval.state == "pending":
        approval = _refresh_request(ledger, approval, now())
        if approval.state == "pending":
            pause(POLL)
    if approval.state != "approved" and approval.expires_at is not None:
        expiry.rearm(ledger, approval.environment, expiry.earliest_end(approval.expires_at))
    return approval


def _refresh_request(ledger: Ledger, approval: Approval, now: datetime) -> Approval:
    """Read the request again; reject it after its deadline, or if the environment has stopped."""
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
    """Why the environment does not run any more; empty while it runs or its state is unknown."""
    try:
        environment = ledger.get(id)
    except NothingMatchedError:
        return "the environment was destroyed"
    try:
        reason = providers.load(environment.provider).status(environment).stop_reason()
    except EphemeralError:
        return ""  # unknown: its machine or account can't be reached from here
    return reason and f"the environment has stopped: {reason}"
