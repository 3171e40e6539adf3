"""An environment's expiry: extend it, keep it past its owner, disarm it for production."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from pytest_ephemeral import labels, providers
from pytest_ephemeral.environments import overdue
from pytest_ephemeral.environments.ledger import Ledger
from pytest_ephemeral.errors import EphemeralError, PromotionError
from pytest_ephemeral.models import Environment

#: How long an environment can still be inspected when nobody needs it any more.
GRACE: Final = timedelta(minutes=5)


def extend(ledger: Ledger, environment: Environment, expires_at: datetime) -> Environment:
    """Change an expiry, first on all resources of the environment, then in its record.

    Args:
        ledger: Where its record is.
        environment: As it is recorded.
        expires_at: In UTC.

    Raises:
        EphemeralError: It is gone, or on another machine, or has become production meanwhile. The
            record is unchanged.
    """
    provider = providers.load(environment.provider)
    provider.extend(environment, expires_at)
    extended = ledger.change_if(environment.id, _may_expire, expires_at=expires_at)
    if extended is None:
        # Gone, or disarmed since it was read: what never ends must not have been given an end.
        now = ledger.get(environment.id)
        if now.expires_at is None:
            provider.extend(now, None)
        raise PromotionError(f"{environment.id} was not extended: it is {_describe_change(now)}")
    return extended


def _may_expire(environment: Environment) -> bool:
    return environment.expires_at is not None and environment.state != "destroying"


def _describe_change(environment: Environment) -> str:
    if environment.state == "destroying":
        return "being destroyed"
    return f"{environment.production or 'being promoted'}, which never expires"


def keep(ledger: Ledger, environment: Environment) -> Environment:
    """Let an environment outlive its owner. Its expiry still holds.

    Args:
        ledger: Where its record is. It is changed first: a record that says "kept" of something
            that ends all the same is harmless, the opposite is not.
        environment: As it is recorded.

    Raises:
        EphemeralError: It is gone, or on another machine.
    """
    ledger.change(environment.id, kept=True)
    providers.load(environment.provider).keep(environment)
    return msgspec.structs.replace(environment, kept=True)


def hold(ledger: Ledger, environment: Environment, until: datetime) -> None:
    """Keep an environment until a moment at least, even if its owner ends.

    Args:
        ledger: Where its record is.
        environment: As it is recorded.
        until: An expiry later than this stays.

    Raises:
        EphemeralError: It is gone, or on another machine.
    """
    keep(ledger, environment)
    if environment.expires_at is not None and environment.expires_at < until:
        extend(ledger, environment, until)


def rearm(ledger: Ledger, id: str, when: datetime) -> str:
    """Give an environment an expiry again. The record changes first: `reap` follows the record.

    Args:
        ledger: Where its record is.
        id: The environment's. That it is gone already is not an error.
        when: When it may be destroyed.

    Returns:
        What was done, in a sentence for people.
    """
    ledger.change(id, expires_at=when, production=None)
    try:
        environment = ledger.get(id)
        providers.load(environment.provider).extend(environment, when)
    except EphemeralError as error:
        return f"{id} could not be reached, `pytest-ephemeral reap` will destroy it: {error}"
    return f"{id} ends at {when:%Y-%m-%d %H:%M:%S} UTC"


def earliest_end(expires_at: datetime | None) -> datetime:
    """When an environment that is no longer held may end: at its own expiry, or after a moment."""
    soon = datetime.now(UTC) + GRACE
    return soon if expires_at is None else max(soon, expires_at)


def disarm(ledger: Ledger, environment: Environment) -> str:
    """Turn off everything that could end an environment, and verify that it is off.

    That is expiry, guest timer, guard and owner, and, by the record, reaper and watchdog.

    Returns:
        The proof, in a sentence for people.

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
        raise PromotionError(f"{environment.id} is being destroyed: bring up another one")
    if not recorded.kept or overdue.why(recorded, datetime.max.replace(tzinfo=UTC)):
        raise PromotionError(
            f"{environment.id} still expires, according to its record in the ledger"
        )
    found = (one for one in provider.list_owned() if one.id == environment.id)
    owned = next(found, None)
    expires = "gone" if owned is None else owned.labels.get(labels.EXPIRES, "unknown")
    if expires != labels.NEVER:
        raise PromotionError(
            f"{environment.id} may still end by itself: its provider {environment.provider!r} "
            f"reports the expiry {expires}, not {labels.NEVER}"
        )
    return f"{environment.id} never expires: its record and its provider agree"
