"""Destroy every environment that has expired or whose owner process is gone.

Each environment is checked again right before its removal, because it may have been extended, kept
or promoted meanwhile. Several reapers may run at the same time: destroying an environment twice is
no error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from itertools import groupby
from pathlib import PurePosixPath
from typing import Final

import msgspec

from pytest_ephemeral import providers
from pytest_ephemeral.environments.overdue import (
    Overdue,
    Unseen,
    explain_abandoned,
    explain_overdue,
    overdue,
)
from pytest_ephemeral.environments.removal import remove
from pytest_ephemeral.errors import DestroyError, EphemeralError, RecordMissingError
from pytest_ephemeral.ledger import Ledger
from pytest_ephemeral.project import Project
from pytest_ephemeral.providers.abilities import SupportsBulkSweep
from pytest_ephemeral.providers.protocol import Provider

#: How many environments to destroy in parallel. The threads mostly wait.
AT_ONCE: Final = 64


class Reaped(msgspec.Struct, frozen=True):
    """The result for one environment: it was removed, or would be in a dry run, or could not be.

    Attributes:
        id: The environment's id; empty if its provider can't be searched.
        provider: The name of its provider; empty if its record can't be read.
        reason: Why it may be removed.
        error: Why it was not removed; empty if it was.
        account: Its cloud account, if it was only reported because ``accounts`` lacks that account.
        spared: Whether it was left because it was no longer overdue right before its removal.
    """

    id: str
    provider: str
    reason: str
    error: str = ""
    account: str = ""
    spared: bool = False


def reap(
    project: Project,
    *,
    dry_run: bool,
    say: Callable[[Reaped], None] = lambda _: None,
    accounts: Collection[str] | None = None,
    at_once: int = AT_ONCE,
) -> list[Reaped]:
    """Remove everything that is overdue.

    Args:
        project: The project with its ledger.
        dry_run: Whether to report only.
        say: Receives each result when it is known.
        accounts: The cloud accounts in which resources without a record may be removed. In other
            accounts they are only reported. None for all accounts.
        at_once: How many environments to destroy in parallel.

    Returns:
        All results. An environment that could not be removed has an error, and keeps its record.
    """
    reaped, removable = _sort_out(project, accounts, dry_run=dry_run)
    for one in reaped:
        say(one)
    for one in _remove(project.ledger, removable, at_once):
        reaped.append(one)
        say(one)
    return sorted(reaped, key=lambda one: (one.provider, one.id))


def _sort_out(
    project: Project, accounts: Collection[str] | None, *, dry_run: bool
) -> tuple[list[Reaped], list[Overdue]]:
    """Find what is overdue; returns the results that are only reported, and what to remove."""
    reaped: list[Reaped] = []
    removable: list[Overdue] = []
    for found in overdue(project, asked=bool(accounts), dry_run=dry_run):
        if isinstance(found, Unseen):
            reaped.append(Reaped("", found.provider, "it can't be read", found.error))
            continue
        if found.doubt:
            reaped.append(_outcome(found, found.doubt))
            continue
        unnamed = "" if accounts is None or found.account in accounts else found.account
        if dry_run or unnamed:
            reaped.append(Reaped(found.id, found.provider, found.reason, account=unnamed))
        else:
            removable.append(found)
    reaped += [
        Reaped(PurePosixPath(path).stem, "", f"its record {path} is invalid", reason)
        for path, reason in project.ledger.broken.items()
    ]
    return reaped, removable


def raise_leftovers(reaped: list[Reaped]) -> None:
    """Raise an error if anything could not be removed.

    Raises:
        DestroyError: Something is left, or may be; the message lists all of it.
    """
    remaining = [
        f"  {one.id or 'an unknown environment'} ({one.provider or 'bad record'}): {one.error}"
        for one in reaped
        if one.error
    ]
    if remaining:
        raise DestroyError("\n".join(["not everything could be removed:", *remaining]))


def _remove(ledger: Ledger, found: Sequence[Overdue], at_once: int) -> Iterator[Reaped]:
    """Remove environments in parallel; yields each result when it is known."""
    if not found:
        return
    with ThreadPoolExecutor(min(at_once, len(found))) as pool:
        jobs: list[Future[Iterable[Reaped]]] = [
            pool.submit(_remove_recorded, ledger, one) for one in found if one.owned is None
        ]
        unrecorded = sorted(
            (one for one in found if one.owned is not None), key=lambda one: one.provider
        )
        for name, theirs in groupby(unrecorded, key=lambda one: one.provider):
            provider = providers.load(name)
            if isinstance(provider, SupportsBulkSweep):
                jobs.append(pool.submit(_sweep_all, provider, list(theirs)))
            else:
                jobs += [pool.submit(_sweep_one, provider, one) for one in theirs]
        for job in as_completed(jobs):
            yield from job.result()


def remove_if_overdue(ledger: Ledger, id: str) -> bool:
    """Remove an environment if it is still overdue, according to its record.

    Returns:
        Whether it was removed.

    Raises:
        RecordMissingError: Another process has removed it meanwhile.
        DestroyError: Something is left. The record stays.
    """
    environment = ledger.mark_destroying(
        id, lambda one: bool(explain_overdue(one, datetime.now(UTC)))
    )
    if environment is None:
        return False
    remove(ledger, environment)
    return True


def _remove_recorded(ledger: Ledger, found: Overdue) -> list[Reaped]:
    error = ""
    try:
        if not remove_if_overdue(ledger, found.id):
            return [_outcome(found, spared=True)]
    except RecordMissingError:
        pass  # another process has removed it meanwhile
    except Exception as failure:  # noqa: BLE001 - it must not prevent the other removals
        error = _as_text(failure)
    return [_outcome(found, error)]


def _sweep_one(provider: Provider, found: Overdue) -> list[Reaped]:
    error = ""
    try:
        if found.owned is not None:
            provider.sweep(found.owned)
    except Exception as failure:  # noqa: BLE001 - as above
        error = _as_text(failure)
    return [_outcome(found, error)]


def _sweep_all(provider: SupportsBulkSweep, found: Sequence[Overdue]) -> list[Reaped]:
    owned = [one.owned for one in found if one.owned is not None]
    outcome: Mapping[str, EphemeralError | None]
    try:
        outcome = provider.sweep_all(owned, lambda one: bool(explain_abandoned(one)))
    except EphemeralError as error:
        outcome = {one.id: error for one in owned}
    return [
        _outcome(one, str(outcome.get(one.id) or ""), spared=one.id not in outcome) for one in found
    ]


def _as_text(error: Exception) -> str:
    """The text of an error, with its type if it is unexpected."""
    return str(error) if isinstance(error, EphemeralError) else f"{type(error).__name__}: {error}"


def _outcome(found: Overdue, error: str = "", *, spared: bool = False) -> Reaped:
    return Reaped(found.id, found.provider, found.reason, error, spared=spared)
