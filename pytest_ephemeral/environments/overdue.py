"""Find the environments and resources that may be removed.

The ledger's records and the labels of resources are both searched. Each of them is enough to find
an environment. Overdue is what has expired, or whose owner process is gone. A resource without our
labels is never overdue.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from pytest_ephemeral import labels, machine, providers
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Environment, Image
from pytest_ephemeral.project import Project
from pytest_ephemeral.providers.abilities import (
    SupportsAccounts,
    SupportsCataloging,
    SupportsClock,
    SupportsRegions,
)
from pytest_ephemeral.providers.protocol import Owned, Provider
from pytest_ephemeral.tables import Recipe, Template

#: The difference between two clocks from which on an expiry is in doubt.
CLOCK_TOLERANCE: Final = timedelta(seconds=60)


class Overdue(msgspec.Struct, frozen=True):
    """An environment or resource that may be removed.

    Attributes:
        id: The environment's id.
        provider: The name of its provider.
        reason: Why it may be removed.
        owned: The resources that the provider found by their labels; None if there is a record.
        account: The cloud account of ``owned``; empty if the provider has no accounts.
        doubt: Why the reason may be wrong, so that it must not be removed; empty if it is certain.
    """

    id: str
    provider: str
    reason: str
    owned: Owned | None = None
    account: str = ""
    doubt: str = ""


class Unseen(msgspec.Struct, frozen=True):
    """A provider or region that can't be searched."""

    provider: str
    error: str


def overdue(project: Project, *, asked: bool, dry_run: bool) -> Iterator[Overdue | Unseen]:
    """Find everything that may be removed now.

    Args:
        project: The project with its ledger and catalog.
        asked: Whether to search the cloud accounts of providers that the project does not use.
        dry_run: Whether nothing may be changed, not even tags.
    """
    known = project.ledger.entries()
    now = datetime.now(UTC)
    for environment in known:
        if reason := explain_overdue(environment, now):
            doubt = doubt_expiry(environment, now)
            yield Overdue(environment.id, environment.provider, reason, doubt=doubt)
    ids = {environment.id for environment in known}
    used = _used_providers(project, known)
    for name in providers.names():
        if asked or name in used or not _is_shared(name):
            for found in _find_unrecorded(project, name, known):
                if isinstance(found, Unseen):
                    if (asked or name in used) and _is_shared(name):
                        yield found
                elif found.id not in ids:
                    yield from _skip_cataloged(project, found, dry_run=dry_run)


def explain_overdue(environment: Environment, now: datetime) -> str:
    """Why an environment may be removed; empty if it may not.

    Args:
        environment: The environment, as recorded.
        now: The current time in UTC.
    """
    if environment.expires_at is None:
        return ""
    if environment.expires_at <= now:
        return f"it expired at {environment.expires_at:%Y-%m-%d %H:%M:%S} UTC"
    if not environment.kept and machine.is_alive(environment.owner) is False:
        return f"its owner {environment.owner} is gone"
    return ""


def doubt_expiry(environment: Environment, now: datetime) -> str:
    """Why this machine's clock may be wrong about an expiry; empty if there is no doubt.

    The clock is compared with the time since the launch, and with the clock of the provider.

    Args:
        environment: The environment, as recorded.
        now: The current time of this machine's clock, in UTC.
    """
    expires_at = environment.expires_at
    if expires_at is None or expires_at > now:
        return ""
    age = machine.age(environment.owner)
    if age is not None:
        true_now = environment.created_at + timedelta(seconds=age)
        if true_now < expires_at and now - true_now > CLOCK_TOLERANCE:
            return _describe_skew(
                f"was set forward by {_minutes(now - true_now)} since it was launched"
            )
    their_now = _clock_of(environment)
    if their_now is None or their_now >= expires_at or now - their_now <= CLOCK_TOLERANCE:
        return ""
    return _describe_skew(f"is {_minutes(now - their_now)} ahead of the clock where it runs")


def _clock_of(environment: Environment) -> datetime | None:
    """The time of the provider's clock; None if it has no clock of its own, or no answer."""
    try:
        provider = providers.load(environment.provider)
        return provider.clock(environment) if isinstance(provider, SupportsClock) else None
    except EphemeralError:
        return None  # the removal will fail, too, and report the reason


def _describe_skew(how: str) -> str:
    return (
        f"this machine's clock {how}: it may not have expired, and was left alone. Set the clock "
        "right and reap again, or destroy it by name with `pytest-ephemeral down`"
    )


def _minutes(time: timedelta) -> str:
    return f"{time.total_seconds() / 60:.0f} min"


def explain_abandoned(owned: Owned) -> str:
    """Why a resource without a record may be removed, by its labels; empty if it may not.

    It may belong to another project. It has expired only if that is true by this machine's clock
    and by the provider's clock.
    """
    if owned.abandoned:
        return f"it has no record, and its owner is gone: {owned.detail}"
    now = datetime.now(UTC)
    expires = owned.labels.get(labels.EXPIRES, labels.NEVER)
    if not _is_past(expires, min(now, owned.seen_at or now)):
        return ""
    return f"it has no record, and it expired at {expires}: {owned.detail}"


def _find_unrecorded(
    project: Project, name: str, known: Iterable[Environment]
) -> Iterator[Overdue | Unseen]:
    """Find the overdue resources of one provider by their labels."""
    try:
        provider = providers.load(name)
        searches = _make_searches(project, provider, known)
    except EphemeralError as error:
        yield Unseen(name, str(error))
        return
    account = ""
    for search in searches:
        try:
            found = [(one, reason) for one in search() if (reason := explain_abandoned(one))]
            if found and not account and isinstance(provider, SupportsAccounts):
                account = provider.account()
        except EphemeralError as error:
            yield Unseen(name, str(error))
            continue
        for one, reason in found:
            yield Overdue(one.id, name, reason, one, account)


def _make_searches(
    project: Project, provider: Provider, known: Iterable[Environment]
) -> list[Callable[[], Iterable[Owned]]]:
    """One search function for each region, so that an error in one does not prevent the others."""
    if not isinstance(provider, SupportsRegions):
        return [provider.list_owned]
    config = project.config
    mentioned: list[Template | Recipe | Environment | Image] = []
    mentioned += [*config.templates.values(), *config.images.values()]
    mentioned += [*known, *project.images.catalog.entries()]
    regions = provider.regions(mentioned)
    return [lambda region=region: provider.list_owned_in(region) for region in regions]  # type: ignore[misc]


def _skip_cataloged(
    project: Project, found: Overdue, *, dry_run: bool
) -> Iterator[Overdue | Unseen]:
    """Leave out images that are in the catalog, and tag them as cataloged.

    A bake that was killed may have recorded an image and not tagged it yet.
    """
    reference = "" if found.owned is None else found.owned.image
    images = project.images.catalog.entries() if reference else []
    known = [one for one in images if (one.provider, one.reference) == (found.provider, reference)]
    provider = providers.load(found.provider)
    if not known:
        yield found
    elif isinstance(provider, SupportsCataloging) and not dry_run:
        try:
            provider.mark_cataloged(known[0], None)
        except EphemeralError as error:
            yield Unseen(found.provider, str(error))


def _is_shared(name: str) -> bool:
    try:
        return isinstance(providers.load(name), SupportsAccounts)
    except EphemeralError:
        return True


def _used_providers(project: Project, known: Collection[Environment]) -> set[str]:
    """The names of the providers that a project uses."""
    templates = {template.provider for template in project.config.templates.values()}
    recipes = {recipe.provider for recipe in project.config.images.values()}
    return templates | recipes | {environment.provider for environment in known}


def _is_past(expires: str, now: datetime) -> bool:
    """Whether an expiry label is in the past; False if it can't be read."""
    try:
        return expires != labels.NEVER and datetime.fromisoformat(expires) <= now
    except (ValueError, TypeError):  # not a date, or one without a time zone
        return False
