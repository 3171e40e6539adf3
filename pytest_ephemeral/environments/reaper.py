"""Destroy every environment whose time is over or whose owner is gone, and prove it.

Both halves are looked at: what the ledger records, and what carries our labels whether or not a
record of it is left. What is neither expired nor abandoned is never touched, nor is anything
without our labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from pytest_ephemeral import labels, machine, providers
from pytest_ephemeral.environments.ledger import Ledger
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
    """

    id: str
    provider: str
    reason: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Overdue:
    id: str
    provider: str
    reason: str
    remove: Callable[[], None]


def reap(
    project: Project, *, dry_run: bool, say: Callable[[Reaped], None] = lambda _: None
) -> list[Reaped]:
    """Remove all that is overdue. Two may run at once: destroying twice is no error.

    Args:
        project: Whose ledger.
        dry_run: Only tell what would be removed.
        say: Told of each as it is dealt with.

    Returns:
        Each of them. Those that could not be removed carry the error, and keep their records.
    """
    reaped = []
    for overdue in _overdue(project.ledger, datetime.now(UTC)):
        error = "" if dry_run else _removing(overdue)
        reaped.append(Reaped(overdue.id, overdue.provider, overdue.reason, error))
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


def _overdue(ledger: Ledger, now: datetime) -> Iterator[_Overdue]:
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
        yield from _unrecorded(name, ids, now)


def _unrecorded(name: str, known: set[str], now: datetime) -> Iterator[_Overdue]:
    """What one provider holds of ours that this ledger knows nothing of.

    Another project's ledger may know it, so only its own labels can say that it is overdue.
    """
    try:
        provider = providers.load(name)
        found = list(provider.owned())
    except EphemeralError:
        return  # it can't be reached from here, so nothing of it can be looked for
    for owned in found:
        reason = _why_abandoned(owned, now)
        if owned.id not in known and reason:
            yield _Overdue(owned.id, name, reason, _sweep(provider, owned))


def _sweep(provider: Provider, owned: Owned) -> Callable[[], None]:
    return lambda: provider.sweep(owned)


def _why_abandoned(owned: Owned, now: datetime) -> str:
    if owned.abandoned:
        return f"no record of it is left, and its owner is gone: {owned.detail}"
    expires = owned.labels.get(labels.EXPIRES, labels.NEVER)
    if expires == labels.NEVER or datetime.fromisoformat(expires) > now:
        return ""
    return f"no record of it is left, and it expired at {expires}: {owned.detail}"
