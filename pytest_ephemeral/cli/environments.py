"""The verbs on environments that are up: list, show, logs, run, extend, down, reap."""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from pytest_ephemeral import providers
from pytest_ephemeral.cli import progress
from pytest_ephemeral.cli.arguments import add_verb, count, duration
from pytest_ephemeral.cli.output import Output, since, until
from pytest_ephemeral.cli.session import lifecycle, open_project
from pytest_ephemeral.environments import overdue, reaper
from pytest_ephemeral.environments.ledger import Ledger
from pytest_ephemeral.errors import (
    DestroyError,
    EnvironmentGoneError,
    EphemeralError,
    PromotionError,
    TamperedRecordError,
)
from pytest_ephemeral.models import Environment, to_builtins
from pytest_ephemeral.providers.protocol import Provider, Status

if TYPE_CHECKING:
    from pytest_ephemeral.cli.arguments import Parser, Verbs

#: Seconds between two looks at a log that is followed.
_FOLLOW_EVERY: Final = 0.2

_TIMED_OUT: Final = 5


def add_to(verbs: Verbs) -> None:
    """Add the verbs."""
    add_verb(verbs, "list", list_, "list the environments that are up")
    _one(add_verb(verbs, "show", show, "show everything about an environment"))
    _add_logs(verbs)
    _add_run(verbs)
    extending = add_verb(verbs, "extend", extend, "give an environment more time")
    _one(extending)
    extending.add_argument("time", metavar="TIME", type=duration, help="how much more: 1h")
    downing = add_verb(verbs, "down", down, "destroy environments")
    downing.add_argument("ids", metavar="ENV", nargs="*", help="ids, or their beginnings")
    downing.add_argument(
        "--all", action="store_true", help="every one in the store, whoever's, that has an expiry"
    )
    downing.add_argument(
        "--production", action="store_true", help="also what is production, if it is named"
    )
    reaping = add_verb(
        verbs, "reap", reap, "destroy environments whose time is over or whose owner is gone"
    )
    reaping.add_argument("--dry-run", action="store_true", help="only say what would be destroyed")
    reaping.add_argument(
        "--account",
        action="append",
        default=[],
        help="a cloud account in which what no ledger here knows may be destroyed too",
    )


def _add_logs(verbs: Verbs) -> None:
    parser = add_verb(verbs, "logs", logs, "print what an environment has printed")
    _one(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on until it is gone")
    parser.add_argument("--tail", metavar="N", type=count, help="only the last N lines")


def _add_run(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "run",
        run,
        "run a command inside an environment",
        usage="pytest-ephemeral run [-h] [--timeout TIME] ENV -- COMMAND…",
        epilog="Exits with the command's own status; with 5 when it took too long.",
    )
    _one(parser)
    parser.add_argument("--timeout", metavar="TIME", type=duration, help="how long it may take: 5m")
    parser.set_defaults(takes_command=True)


def _one(parser: Parser) -> None:
    parser.add_argument("id", metavar="ENV", help="its id, or the beginning of it")


def list_(arguments: argparse.Namespace, output: Output) -> int:
    """List the ledger, with how each is now."""
    ledger = open_project(arguments).ledger
    found = ledger.entries()
    for path in ledger.broken:
        output.say(f"warning: the record {path} of {ledger.store.url} can't be read: left out")
    now = datetime.now(UTC)
    states = {one.id: _state(one, now, _status(one)) for one in found}
    if output.as_json:
        output.data(
            environments=[to_builtins(one) | {"condition": states[one.id]} for one in found],
            broken=list(ledger.broken),
        )
    elif not found:
        output.say("no environments are up")
    else:
        output.table(
            ("ID", "TEMPLATE", "STATE", "URL", "AGE", "EXPIRES", "OWNER"),
            (
                (
                    one.id,
                    one.template,
                    states[one.id],
                    one.url,
                    since(one.created_at),
                    until(one.expires_at),
                    str(one.owner),
                )
                for one in found
            ),
        )
    return 0


def show(arguments: argparse.Namespace, output: Output) -> int:
    """Show one environment, and how its provider says it is."""
    environment = open_project(arguments).ledger.get(arguments.id)
    status = _status(environment)
    if output.as_json:
        output.data(
            environment=environment,
            status=None if status is None else {"state": status.state, "detail": status.detail},
        )
        return 0
    image = environment.image
    output.facts(
        [
            ("id", environment.id),
            ("template", environment.template),
            ("provider", environment.provider),
            ("image", f"{image.name} {image.key}" if image else ""),
            ("state", _state(environment, datetime.now(UTC), status)),
            ("detail", status.detail if status else ""),
            ("url", environment.url),
            *((f"endpoint {name}", one.url) for name, one in environment.endpoints.items()),
            ("created", f"{environment.created_at:%Y-%m-%d %H:%M:%S} UTC"),
            ("expires", until(environment.expires_at)),
            ("owner", str(environment.owner)),
            ("run", environment.owner.run),
        ]
    )
    return 0


def logs(arguments: argparse.Namespace, output: Output) -> int:
    """Print a log, and go on printing it if asked to."""
    environment = open_project(arguments).ledger.get(arguments.id)
    provider: Provider = providers.load(environment.provider)
    if output.as_json and arguments.follow:
        arguments.parser.error("--json gives one object, and --follow has no end")
    if output.as_json:
        output.data(id=environment.id, logs=dict(provider.log_files(environment)))
        return 0
    mark = provider.log_mark(environment)
    _write(provider.logs(environment, until=mark, tail=arguments.tail))
    if arguments.follow:
        _follow(provider, environment, mark)
    return 0


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Run a command, and end as it ended."""
    if not arguments.command:
        arguments.parser.error("which command? Put it after `--`")
    environment = open_project(arguments).ledger.get(arguments.id)
    try:
        done = environment.run(arguments.command, timeout=arguments.timeout)
    except subprocess.TimeoutExpired:
        output.say(f"error: it had not ended after {arguments.timeout}, and was killed")
        return _TIMED_OUT
    # What a signal ended has a negative status here, and 128 + its number in shells.
    status = done.returncode if done.returncode >= 0 else 128 - done.returncode
    if output.as_json:
        output.data(exit_status=status, stdout=done.stdout, stderr=done.stderr)
    else:
        _write(done.stdout)
        print(done.stderr, end="", file=sys.stderr)
    return status


def extend(arguments: argparse.Namespace, output: Output) -> int:
    """Move an expiry, from where it is or from now, whichever is later."""
    project = open_project(arguments)
    environment = project.ledger.get(arguments.id)
    if environment.expires_at is None:
        output.say(f"{environment.id} never expires")
    else:
        later = max(environment.expires_at, datetime.now(UTC)) + timedelta(seconds=arguments.time)
        with progress.shown() as say, lifecycle(project, say) as life:
            environment = life.extend(environment, later)
    if output.as_json:
        output.data(environment=environment)
    else:
        output.line(f"{environment.id} expires {until(environment.expires_at)}")
    return 0


def down(arguments: argparse.Namespace, output: Output) -> int:
    """Destroy what is named, all of it, even if some can't be."""
    if bool(arguments.ids) == arguments.all:
        arguments.parser.error("name environments, or give --all")
    project = open_project(arguments)
    chosen, errors = _chosen(project.ledger, arguments.ids)
    if not arguments.production:
        _refuse_production(chosen)
    with progress.shown() as say, lifecycle(project, say) as life:
        for environment in chosen:
            try:
                life.destroy(environment)
            except (EphemeralError, OSError) as error:
                errors[environment.id] = str(error)
    destroyed = [one.id for one in chosen if one.id not in errors]
    if output.as_json:
        output.data(destroyed=destroyed, errors=errors)
    elif not chosen and not errors:
        output.say("no environments are up")
    for text in errors.values():
        output.say(f"error: {text}")
    return DestroyError.exit_status if errors else 0


def reap(arguments: argparse.Namespace, output: Output) -> int:
    """Destroy what is overdue, and print each."""
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
                output.line(_told(one, dry_run=arguments.dry_run))
        if not found:
            output.say("nothing is overdue")
    for account in sorted({one.account for one in found if one.account}):
        output.say(f"to destroy these in account {account}: reap --account {account}")
    reaper.leftovers(found)
    return 0


def _told(one: reaper.Reaped, *, dry_run: bool) -> str:
    """What has become of one thing that was overdue."""
    if one.spared:
        return f"left {one.id}: it is not overdue any more"
    verb = "would destroy" if dry_run or one.account else "destroyed"
    return f"{'could not destroy' if one.error else verb} {one.id}: {one.reason}"


def _chosen(ledger: Ledger, ids: Iterable[str]) -> tuple[list[Environment], dict[str, str]]:
    """Those that are named, each once, or all that expire; and by name, why a record is bad."""
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


def _refuse_production(chosen: Iterable[Environment]) -> None:
    """What never expires is production, or is just becoming it."""
    live = [environment.id for environment in chosen if environment.expires_at is None]
    if live:
        raise PromotionError(
            f"{', '.join(live)} is production, or is becoming it: nothing was destroyed. The next "
            "`pytest-ephemeral promote` retires it; to destroy it now: down --production"
        )


def _state(environment: Environment, now: datetime, status: Status | None) -> str:
    """In a word or two, the worst that can be said of it."""
    if environment.expires_at is not None and environment.expires_at <= now:
        return "expired"
    if overdue.why(environment, now):
        return "owner gone"
    if environment.state != "ready":
        return environment.state
    if status is None:
        return "unknown"
    if status.state != "running":
        return status.state
    return environment.production or ("kept" if environment.kept else "ready")


def _status(environment: Environment) -> Status | None:
    """How it is; None when its provider is out of reach, which is no reason not to list it."""
    try:
        provider: Provider = providers.load(environment.provider)
        return provider.status(environment)
    except (EphemeralError, OSError):
        return None


def _follow(provider: Provider, environment: Environment, mark: str) -> None:
    """Print what comes, until the environment is gone and its log with it."""
    pause = threading.Event()
    with suppress(EnvironmentGoneError):
        while provider.status(environment).state != "gone":
            pause.wait(_FOLLOW_EVERY)
            reached = provider.log_mark(environment)
            if reached != mark:
                _write(provider.logs(environment, since=mark, until=reached))
                mark = reached


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
