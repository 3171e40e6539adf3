"""``down`` and ``reap``: destroy the named environments, or those that are overdue."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_ephemeral.cli import progress
from pytest_ephemeral.cli.arguments import add_command
from pytest_ephemeral.cli.output import Printer
from pytest_ephemeral.cli.session import lifecycle, open_project
from pytest_ephemeral.environments import reaper
from pytest_ephemeral.environments.removal import describe_problem
from pytest_ephemeral.errors import (
    DestroyError,
    EphemeralError,
    PromotionError,
    StoreError,
    TamperedRecordError,
)
from pytest_ephemeral.ledger import Ledger
from pytest_ephemeral.models import Environment

if TYPE_CHECKING:
    from pytest_ephemeral.cli.arguments import Subcommands
    from pytest_ephemeral.project import Project


def add_to(commands: Subcommands) -> None:
    """Add the commands."""
    downing = add_command(commands, "down", down, "destroy environments")
    downing.add_argument("ids", metavar="ENV", nargs="*", help="ids, or unique prefixes")
    downing.add_argument(
        "--all",
        action="store_true",
        help="all environments in the store, of all owners; not what is in production or is being "
        "promoted",
    )
    downing.add_argument(
        "--production", action="store_true", help="also destroy an environment in production"
    )
    reaping = add_command(
        commands, "reap", reap, "destroy environments that have expired or lost their owner"
    )
    reaping.add_argument(
        "--dry-run", action="store_true", help="only print what would be destroyed"
    )
    reaping.add_argument(
        "--account",
        metavar="NUMBER",
        action="append",
        default=[],
        help="a cloud account in which resources that are missing from the ledger are destroyed, "
        "too",
    )


def down(arguments: argparse.Namespace, output: Printer) -> int:
    """Destroy all named environments; an error with one does not stop the others."""
    if bool(arguments.ids) == arguments.all:
        arguments.parser.error("name environments, or use --all" + ", not both" * arguments.all)
    project = open_project(arguments)
    chosen, errors = _chosen(project.ledger, arguments.ids)
    if not arguments.production:
        _refuse_production(chosen)
    with progress.show() as say, lifecycle(project, say) as life:
        for environment in chosen:
            try:
                if not arguments.production:
                    _mark_destroying(project.ledger, environment)
                life.destroy(environment)
            except (EphemeralError, OSError) as error:
                errors[environment.id] = str(error)
    destroyed = [one.id for one in chosen if one.id not in errors]
    dangling = _dangling(project, [one for one in chosen if one.id in destroyed])
    if output.as_json:
        output.data(destroyed=destroyed, errors=errors, dangling=dangling)
    elif not chosen and not errors:
        output.say("no environments are up")
    for name, record in dangling.items():
        output.say(
            f"warning: {record} still points to the destroyed environment: promote another one "
            f"to {name}, or run `pytest-ephemeral rollback {name}`"
        )
    for id, text in errors.items():
        output.say(f"error: {text}" if id in text else f"error: {id}: {text}")
    return DestroyError.exit_status if errors else 0


def reap(arguments: argparse.Namespace, output: Printer) -> int:
    """Destroy all overdue environments and resources, and print each with the reason."""
    project = open_project(arguments)
    found = reaper.reap(project, dry_run=arguments.dry_run, accounts=arguments.account)
    if output.as_json:
        output.data(
            dry_run=arguments.dry_run,
            reaped=[
                {
                    "id": one.id,
                    "provider": one.provider,
                    "reason": one.reason,
                    "error": one.error,
                    "unnamed-account": one.account,
                    "spared": one.spared,
                }
                for one in found
            ],
            broken=list(project.ledger.broken),
        )
    else:
        for one in found:
            if one.id and one.provider:
                output.line(_describe_reaped(one, dry_run=arguments.dry_run))
        if not found:
            output.say("nothing is overdue")
        for remaining in project.ledger.entries():
            if remaining.problem and remaining.id not in {one.id for one in found}:
                output.say(_describe_remaining(remaining))
    for account in sorted({one.account for one in found if one.account}):
        output.say(f"to destroy those in account {account}, add --account {account}")
    reaper.raise_leftovers(found)
    return 0


def _describe_reaped(one: reaper.Reaped, *, dry_run: bool) -> str:
    """One line: what was done with one overdue environment or resource, and why."""
    if one.spared:
        return f"left {one.id}: it is no longer overdue"
    action = "would destroy" if dry_run or one.account else "destroyed"
    return f"{'could not destroy' if one.error else action} {one.id}: {one.reason}"


def _describe_remaining(one: Environment) -> str:
    """A warning about an environment whose removal failed, but which is not overdue yet."""
    return (
        f"warning: {describe_problem(one.id, one.problem)}. It is not overdue, so its run may "
        f"still try. To try now: pytest-ephemeral down {one.id}"
    )


def _chosen(ledger: Ledger, ids: Iterable[str]) -> tuple[list[Environment], dict[str, str]]:
    """The environments to destroy, each once; and by name, the error of each unreadable record.

    Without names, these are all environments that have an expiry.
    """
    if not ids:
        found = [one for one in ledger.entries() if one.expires_at is not None]
        return found, dict(ledger.broken)
    named: dict[str, Environment] = {}
    bad: dict[str, str] = {}
    for id in ids:
        try:
            environment = ledger.get(id)
            named[environment.id] = environment
        except TamperedRecordError as error:
            bad[id] = str(error)
    return list(named.values()), bad


def _dangling(project: Project, destroyed: Iterable[Environment]) -> dict[str, str]:
    """The promotions whose DNS record points to a destroyed environment, with that record."""
    names = {one.production for one in destroyed if one.production is not None}
    promotions = project.config.promotions
    return {name: promotions[name].record for name in sorted(names) if name in promotions}


def _refuse_production(chosen: Iterable[Environment]) -> None:
    """Raise an error for environments without an expiry: in production, or being promoted."""
    live = [environment.id for environment in chosen if not _expires(environment)]
    if live:
        raise _production_error(", ".join(live))


def _mark_destroying(ledger: Ledger, environment: Environment) -> None:
    """Mark an environment as being destroyed, so that no promotion can start.

    Raises:
        PromotionError: A promotion of it has started or ended since ``_refuse_production``.
    """
    with suppress(StoreError):  # its record was removed, or can't be written
        if ledger.mark_destroying(environment.id, _expires) is None:
            raise _production_error(environment.id)


def _expires(environment: Environment) -> bool:
    return environment.expires_at is not None


def _production_error(live: str) -> PromotionError:
    return PromotionError(
        f"{live} is in production or is being promoted: nothing was destroyed. The next "
        "`pytest-ephemeral promote` retires it. To destroy it now, add --production"
    )
