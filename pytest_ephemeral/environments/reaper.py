"""Destroy every environment whose time is over or whose owner is gone, and prove it.

Both halves are looked at: what the ledger records, and what carries our labels whether or not a
record of it is left. What is neither expired nor abandoned is never touched, nor is anything
without our labels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, runtime_checkable

from pytest_ephemeral import labels, machine, providers
from pytest_ephemeral.environments.removal import remove
from pytest_ephemeral.errors import DestroyError, EphemeralError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.project import Project
from pytest_ephemeral.providers import Owned, Provider


@dataclass(frozen=True, slots=True)
class Reaped:
    """One thing that was, or in a dry run would be, removed.

    Attributes:
        id: The environment's.
        provider: What ran it.
        reason: Why it may be removed.
        error: Why it could not be; empty when it was.
        account: The cloud account it is in, if it was only looked at because nobody has named that.
    """

    id: str
    provider: str
    reason: str
    error: str = ""
    account: str = ""


@runtime_checkable
class Shared(Protocol):
    """A provider whose resources are in an account that others use too."""

    def account(self) -> str:
        """Which it is, as its owner names it."""


@dataclass(frozen=True, slots=True)
class _Overdue:
    id: str
    provider: str
    reason: str
    remove: Callable[[], None]
    account: str = ""


def reap(
    project: Project,
    *,
    dry_run: bool,
    say: Callable[[Reaped], None] = lambda _: None,
    accounts: Collection[str] | None = None,
) -> list[Reaped]:
    """Remove all that is overdue. Two may run at once: destroying twice is no error.

    Args:
        project: Whose ledger.
        dry_run: Only tell what would be removed.
        say: Told of each as it is dealt with.
        accounts: Those in which what the ledger does not know may be removed too; elsewhere, that
            is only told. None for all.

    Returns:
        Each of them. Those that could not be removed carry the error, and keep their records.
    """
    reaped = []
    for overdue in _overdue(project, datetime.now(UTC), asked=bool(accounts)):
        unnamed = "" if accounts is None or overdue.account in accounts else overdue.account
        error = "" if dry_run or unnamed else _removing(overdue)
        reaped.append(Reaped(overdue.id, overdue.provider, overdue.reason, error, unnamed))
        say(reaped[-1])
    return reaped


def leftovers(reaped: list[Reaped]) -> None:
    """Raise if something of what was reaped remains.

    Raises:
        DestroyError: Something remains; names all of it.
    """
    remaining = [f"  {one.id} ({one.provider}): {one.error}" for one in reaped if one.error]
    if remaining:
        raise DestroyError("\n".join(["not everything could be removed:", *remaining]))


def why_overdue(environment: Environment, now: datetime) -> str:
    """Why an environment may be removed; empty when it may not.

    Args:
        environment: As its record has it.
        now: In UTC.
    """
    if environment.expires_at is None:
        return ""
    if environment.expires_at <= now:
        return f"it expired at {environment.expires_at:%Y-%m-%d %H:%M:%S} UTC"
    if not environment.kept and machine.is_alive(environment.owner) is False:
        return f"its owner {environment.owner} is gone"
    return ""


def _removing(overdue: _Overdue) -> str:
    try:
        overdue.remove()
    except EphemeralError as error:
        return str(error)
    return ""


def _overdue(project: Project, now: datetime, *, asked: bool) -> Iterator[_Overdue]:
    ledger = project.ledger
    known = ledger.entries()
    for environment in known:
        if reason := why_overdue(environment, now):
            yield _Overdue(
                environment.id,
                environment.provider,
                reason,
                lambda found=environment: remove(ledger, found),  # type: ignore[misc]
            )
    ids = {environment.id for environment in known}
    for name in providers.names():
        if asked or name in _used(project) or not _is_shared(name):
            yield from _unrecorded(name, ids, now)


def _is_shared(name: str) -> bool:
    try:
        return isinstance(providers.load(name), Shared)
    except EphemeralError:
        return True


def _used(project: Project) -> set[str]:
    """The providers of a project: nobody's account is looked into for one that is none of them."""
    templates = {template.provider for template in project.config.templates.values()}
    return templates | {recipe.provider for recipe in project.config.images.values()}


def _unrecorded(name: str, known: set[str], now: datetime) -> Iterator[_Overdue]:
    """What one provider holds of ours that this ledger knows nothing of.

    Another project's ledger may know it, so only its own labels can say that it is overdue.
    """
    try:
        provider = providers.load(name)
        found = list(provider.owned())
        account = provider.account() if found and isinstance(provider, Shared) else ""
    except EphemeralError:
        return  # it can't be reached from here, so nothing of it can be looked for
    for owned in found:
        reason = _why_abandoned(owned, now)
        if owned.id not in known and reason:
            yield _Overdue(owned.id, name, reason, _sweep(provider, owned), account)


def _sweep(provider: Provider, owned: Owned) -> Callable[[], None]:
    return lambda: provider.sweep(owned)


def _why_abandoned(owned: Owned, now: datetime) -> str:
    if owned.abandoned:
        return f"no record of it is left, and its owner is gone: {owned.detail}"
    expires = owned.labels.get(labels.EXPIRES, labels.NEVER)
    if not _is_past(expires, now):
        return ""
    return f"no record of it is left, and it expired at {expires}: {owned.detail}"


def _is_past(expires: str, now: datetime) -> bool:
    """Whether a label says that the time is over; one that can't be read does not say so."""
    try:
        return expires != labels.NEVER and datetime.fromisoformat(expires) <= now
    except (ValueError, TypeError):  # not a date, or one without a time zone
        return False
