"""Machines on standby: kept when their environments end, and started again for new environments.

The record of the ended environment becomes the record of its machine. The record changes before the
machine does, it has an expiry, and a new environment claims it by compare-and-swap. If a process is
killed at any point, ``reap`` finds the record: its owner process is gone, or it has expired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from pytest_ephemeral import providers
from pytest_ephemeral.environments.progress import Progress
from pytest_ephemeral.environments.removal import remove
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.ledger import Ledger
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.abilities import SupportsStandby
from pytest_ephemeral.providers.protocol import (
    CLAIMED_BY,
    STANDBY_COUNT,
    STANDBY_FITS,
    STANDBY_SECONDS,
    Order,
    Provider,
)


def launch(ledger: Ledger, order: Order, provider: Provider) -> Environment:
    """Start a machine on standby that fits an order; if there is none, launch a new one.

    Args:
        ledger: The ledger with the records of the machines.
        order: The order for the new environment.
        provider: Its provider.

    Returns:
        The environment. It may not be ready yet.

    Raises:
        LaunchError: The launch failed.
    """
    if isinstance(provider, SupportsStandby) and (fits := provider.fits(order)):
        for standby in _on_standby(ledger, fits):
            if started := _start(ledger, order, provider, standby):
                return started
    return provider.launch(order)


def keep_machine(ledger: Ledger, environment: Environment, say: Callable[[Progress], None]) -> bool:
    """Keep the machine of an environment that ends, if its template has ``standby``.

    Args:
        ledger: The ledger with its record.
        environment: The environment that ends.
        say: Receives a warning if the machine can't be kept.

    Returns:
        Whether it is kept. If not, the environment has to be destroyed.
    """
    provider = providers.load(environment.provider)
    if not (STANDBY_FITS in environment.handle and isinstance(provider, SupportsStandby)):
        return False
    until = datetime.now(UTC) + timedelta(seconds=float(environment.handle[STANDBY_SECONDS]))
    if not _reserve(ledger, environment, until):
        return False
    try:
        provider.renew(environment, until)
    except EphemeralError as error:
        text = f"the machine of {environment.id} is not kept on standby: {error}"
        say(Progress(environment.id, "warning", text))
        _release(ledger, environment)
        return False
    return True


def _reserve(ledger: Ledger, environment: Environment, until: datetime) -> bool:
    """Record a machine as on standby, unless there are enough.

    The machines are counted after the record is written. So several processes at the same time
    never keep too many.
    """

    def is_ours(recorded: Environment) -> bool:
        return recorded.production is None and recorded.expires_at is not None

    changes = {"state": "standby", "kept": True, "expires_at": until}
    if ledger.change_if(environment.id, is_ours, **changes) is None:
        return False
    known = [one.id for one in _on_standby(ledger, environment.handle[STANDBY_FITS])]
    if environment.id in known[: int(environment.handle[STANDBY_COUNT])]:
        return True
    _release(ledger, environment)
    return False


def _release(ledger: Ledger, environment: Environment) -> None:
    ledger.change(environment.id, state="destroying", kept=False, expires_at=environment.expires_at)


def _on_standby(ledger: Ledger, fits: str) -> Iterator[Environment]:
    """The machines on standby that fit and have not expired, oldest first."""
    now = datetime.now(UTC)
    for one in ledger.entries():
        lasts = one.expires_at is not None and one.expires_at > now
        if lasts and one.state == "standby" and one.handle.get(STANDBY_FITS) == fits:
            yield one


def _claim(ledger: Ledger, standby: Environment, claimer: Environment) -> Environment | None:
    """Make the claimer's owner process the owner of a machine; None if another one was first."""
    handle = {**standby.handle, CLAIMED_BY: claimer.id}
    return ledger.change_if(
        standby.id,
        lambda recorded: recorded == standby,
        state="destroying",
        kept=False,
        owner=claimer.owner,
        handle=handle,
    )


def _start(
    ledger: Ledger, order: Order, provider: SupportsStandby, standby: Environment
) -> Environment | None:
    """Start a machine for an order; None if it is not ready, broken, or claimed by another."""
    try:
        readiness = provider.readiness(standby)
    except EphemeralError as error:
        order.warn(f"{standby.id} is on standby, and was left alone: {error}")
        return None
    if readiness == "not yet" or (claimed := _claim(ledger, standby, order.environment)) is None:
        return None
    if readiness == "broken":
        order.warn(f"{standby.id} was on standby, but could not be renewed: it is removed")
        remove(ledger, claimed)
        return None
    try:
        started = provider.restart(order, claimed)
    except EphemeralError as error:
        order.warn(f"{standby.id} was on standby, and can't be started: {error}. It is removed")
        providers.load(standby.provider).destroy(ledger.get(order.environment.id))
        remove(ledger, claimed)
        return None
    with suppress(EphemeralError):  # if this fails, `reap` removes what is left
        provider.let_go(claimed)
        ledger.remove(claimed.id)
    return started
