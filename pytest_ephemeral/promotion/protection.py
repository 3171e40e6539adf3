"""What an environment's expiry must be while people decide, and when it is production."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from pytest_ephemeral import labels, providers
from pytest_ephemeral.environments import overdue
from pytest_ephemeral.environments.ledger import Ledger
from pytest_ephemeral.errors import EphemeralError, PromotionError
from pytest_ephemeral.models import Environment

#: How long an environment of which nobody wants more may still be looked at.
GRACE: Final = timedelta(minutes=5)


def hold(ledger: Ledger, environment: Environment, until: datetime) -> None:
    """Keep an environment alive for some time, whatever becomes of its owner.

    Args:
        ledger: Where its record is.
        environment: As it is recorded.
        until: It may live longer, but not shorter.

    Raises:
        EphemeralError: It is gone, or on another machine.
    """
    provider = providers.load(environment.provider)
    ledger.change(environment.id, kept=True)
    provider.keep(environment)
    if environment.expires_at is not None and environment.expires_at < until:
        provider.extend(environment, until)
        ledger.change(environment.id, expires_at=until)


def let_expire(ledger: Ledger, id: str, when: datetime) -> str:
    """Give an environment an expiry again. The record goes first: what it says, `reap` does.

    Args:
        ledger: Where its record is.
        id: Whose; that nothing of it is there any more is no error.
        when: When it may go.

    Returns:
        What there is to say about it, for people.
    """
    ledger.change(id, expires_at=when, production=None)
    try:
        environment = ledger.get(id)
        providers.load(environment.provider).extend(environment, when)
    except EphemeralError as error:
        return f"{id} could not be told, `pytest-ephemeral reap` will end it: {error}"
    return f"{id} ends itself at {when:%Y-%m-%d %H:%M:%S} UTC"


def afterwards(expires_at: datetime | None) -> datetime:
    """When an environment may go that is no longer held: at its own time, or after a moment."""
    soon = datetime.now(UTC) + GRACE
    return soon if expires_at is None else max(soon, expires_at)


def disarm(ledger: Ledger, environment: Environment) -> str:
    """Take away everything by which an environment could end, and prove that it is taken away.

    Expiry, guest timer, guard and owner; and by its record, reaper and watchdog.

    Returns:
        What the proof was, for people.

    Raises:
        PromotionError: It can't be proven. The name must not move.
        EphemeralError: It is gone.
    """
    provider = providers.load(environment.provider)
    provider.extend(environment, None)
    provider.keep(environment)
    ledger.change(environment.id, expires_at=None, kept=True)
    recorded = ledger.get(environment.id)
    if recorded.state == "destroying":
        raise PromotionError(f"{environment.id} is being destroyed: bring up another")
    if not recorded.kept or overdue.why(recorded, datetime.max.replace(tzinfo=UTC)):
        raise PromotionError(f"{environment.id} still expires, by its record in the ledger")
    found = (one for one in provider.owned() if one.id == environment.id)
    owned = next(found, None)
    expires = "gone" if owned is None else owned.labels.get(labels.EXPIRES, "unknown")
    if expires != labels.NEVER:
        raise PromotionError(
            f"{environment.id} may still end by itself: its provider {environment.provider!r} "
            f"says that its expiry is {expires}, and not {labels.NEVER}"
        )
    return f"{environment.id} never expires, by its record and by its provider's own word"
