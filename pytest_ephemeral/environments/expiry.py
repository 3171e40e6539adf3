"""Change an environment's expiry: extend it, keep it after its run, turn it off for production."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from pytest_ephemeral import labels, providers
from pytest_ephemeral.environments import overdue
from pytest_ephemeral.errors import EphemeralError, PromotionError
from pytest_ephemeral.ledger import Ledger
from pytest_ephemeral.models import Environment

#: The shortest time that an environment stays up for inspection after it is no longer held.
GRACE: Final = timedelta(minutes=5)


def extend(ledger: Ledger, environment: Environment, expires_at: datetime) -> Environment:
    """Change an expiry, first on all resources of the environment, then in its record.

    Args:
        ledger: The ledger with its record.
        environment: The environment, as recorded.
        expires_at: The new expiry, in UTC.

    Returns:
        The changed environment.

    Raises:
        EphemeralError: It is gone, runs on another machine, or has become production meanwhile.
            The record is unchanged.
    """
    provider = providers.load(environment.provider)
    provider.extend(environment, expires_at)
    extended = ledger.change_if(environment.id, _may_expire, expires_at=expires_at)
    if extended is None:
        # Gone, or promoted meanwhile. In the latter case, turn its expiry off again.
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
    """Keep an environment after the end of its owner process. It still expires.

    The record changes first. If this process is killed in between, the environment ends although
    its record says "kept"; that is harmless. The opposite would be a leak.

    Args:
        ledger: The ledger with its record.
        environment: The environment, as recorded.

    Returns:
        The changed environment.

    Raises:
        EphemeralError: It is gone, or runs on another machine.
    """
    ledger.change(environment.id, kept=True)
    providers.load(environment.provider).keep(environment)
    return msgspec.structs.replace(environment, kept=True)


def hold(ledger: Ledger, environment: Environment, until: datetime) -> None:
    """Keep an environment at least until a moment, even if its owner process ends.

    Args:
        ledger: The ledger with its record.
        environment: The environment, as recorded.
        until: The earliest expiry, in UTC. A later one is not changed.

    Raises:
        EphemeralError: It is gone, or runs on another machine.
    """
    keep(ledger, environment)
    if environment.expires_at is not None and environment.expires_at < until:
        extend(ledger, environment, until)


def rearm(ledger: Ledger, id: str, when: datetime) -> str:
    """Turn an environment's expiry on again. The record changes first: `reap` follows the record.

    Args:
        ledger: The ledger with its record.
        id: The environment's id. It is no error if the environment is gone.
        when: The new expiry, in UTC.

    Returns:
        A message for the user: what was done.
    """
    ledger.change(id, expires_at=when, production=None)
    try:
        environment = ledger.get(id)
        providers.load(environment.provider).extend(environment, when)
    except EphemeralError as error:
        return f"{id} could not be reached, `pytest-ephemeral reap` will destroy it: {error}"
    return f"{id} ends at {when:%Y-%m-%d %H:%M:%S} UTC"


def earliest_end(expires_at: datetime | None) -> datetime:
    """The expiry of an environment that is no longer held: its own, but not before ``GRACE``."""
    soon = datetime.now(UTC) + GRACE
    return soon if expires_at is None else max(soon, expires_at)


def disarm(ledger: Ledger, environment: Environment) -> str:
    """Turn off everything that could end an environment, and verify that it is off.

    The provider turns off the expiry of its resources, the timer in the guest, and the guard's end
    with the owner process. The record keeps the owner process and the reaper from removing it.

    Returns:
        A message for the user: what was verified.

    Raises:
        PromotionError: It may still end by itself. It must not be promoted.
        EphemeralError: It is gone.
    """
    provider = providers.load(environment.provider)
    provider.extend(environment, None)
    provider.keep(environment)
    ledger.change(environment.id, expires_at=None, kept=True)
    recorded = ledger.get(environment.id)
    if recorded.state == "destroying":
        raise PromotionError(f"{environment.id} is being destroyed: bring up another one")
    if not recorded.kept or overdue.explain_overdue(recorded, datetime.max.replace(tzinfo=UTC)):
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
