"""What may be removed, and why: by the ledger's records, and by the labels of resources.

Both halves are looked at, so that either of them is enough. What is neither expired nor abandoned
is never overdue, nor is anything without our labels.
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

#: How far two clocks may be apart before an expiry is doubted.
CLOCK_TOLERANCE: Final = timedelta(seconds=60)


class Overdue(msgspec.Struct, frozen=True):
    """One thing that may be removed.

    Attributes:
        id: Whose.
        provider: What ran it.
        reason: Why.
        owned: What its provider holds of it, if no record of ours describes it.
        account: The cloud account that is in, if its provider shares one with others.
        doubt: Why the reason can't be trusted, so that it is not removed; empty when it can.
    """

    id: str
    provider: str
    reason: str
    owned: Owned | None = None
    account: str = ""
    doubt: str = ""


class Unseen(msgspec.Struct, frozen=True):
    """A provider, or one of its regions, that can't be searched."""

    provider: str
    error: str


def overdue(project: Project, *, asked: bool, dry_run: bool) -> Iterator[Overdue | Unseen]:
    """Everything that may be removed now.

    Args:
        project: Whose ledger and catalog.
        asked: Whether accounts are searched even for providers that the project does not use.
        dry_run: Whether nothing may be changed.
    """
    known = project.ledger.entries()
    now = datetime.now(UTC)
    for environment in known:
        if reason := why(environment, now):
            doubt = doubt_of_expiry(environment, now)
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


def why(environment: Environment, now: datetime) -> str:
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


def doubt_of_expiry(environment: Environment, now: datetime) -> str:
    """Why this machine's clock may be wrong about an expiry; empty when there is no doubt.

    Args:
        environment: As its record has it.
        now: By this machine's clock, in UTC.
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
    """The time where an environment runs; None where there is only this machine's clock."""
    try:
        provider = providers.load(environment.provider)
        return provider.clock(environment) if isinstance(provider, SupportsClock) else None
    except EphemeralError:
        return None  # a provider that can't be asked removes nothing either, and reports why


def _describe_skew(how: str) -> str:
    return (
        f"this machine's clock {how}: it may not have expired, and was left alone. Set the clock "
        "right and reap again, or destroy it by name with `pytest-ephemeral down`"
    )


def _minutes(time: timedelta) -> str:
    return f"{time.total_seconds() / 60:.0f} min"


def why_abandoned(owned: Owned) -> str:
    """As ``why``, for a resource without a record, by its labels.

    Another project's ledger may know it. Its time is over when that is so by our clock and by the
    clock of where it is.
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
    """The resources of one provider that are overdue by their labels."""
    try:
        provider = providers.load(name)
        looks = _places_to_look(project, provider, known)
    except EphemeralError as error:
        yield Unseen(name, str(error))
        return
    account = ""
    for look in looks:
        try:
            found = [(one, reason) for one in look() if (reason := why_abandoned(one))]
            if found and not account and isinstance(provider, SupportsAccounts):
                account = provider.account()
        except EphemeralError as error:
            yield Unseen(name, str(error))
            continue
        for one, reason in found:
            yield Overdue(one.id, name, reason, one, account)


def _places_to_look(
    project: Project, provider: Provider, known: Iterable[Environment]
) -> list[Callable[[], Iterable[Owned]]]:
    """One search for each region, so that an error in one leaves the others."""
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
    """Leave out images that the catalog lists: they may not be tagged as recorded yet."""
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
    """The providers that a project uses. Accounts of others are not searched."""
    templates = {template.provider for template in project.config.templates.values()}
    recipes = {recipe.provider for recipe in project.config.images.values()}
    return templates | recipes | {environment.provider for environment in known}


def _is_past(expires: str, now: datetime) -> bool:
    """Whether a label gives an expiry that has passed; False for one that can't be read."""
    try:
        return expires != labels.NEVER and datetime.fromisoformat(expires) <= now
    except (ValueError, TypeError):  # not a date, or one without a time zone
        return False
