"""The commands on environments that are up: list, show, logs, run, extend, down, reap."""

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
from pytest_ephemeral.cli.arguments import add_command, count, duration
from pytest_ephemeral.cli.output import Printer, since, until
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
    from pytest_ephemeral.cli.arguments import Parser, Subcommands

#: Seconds between two looks at a log that is followed.
_FOLLOW_EVERY: Final = 0.2

_TIMED_OUT: Final = 5


def add_to(commands: Subcommands) -> None:
    """Add the commands."""
    add_command(commands, "list", list_, "list environments")
    _one(add_command(commands, "show", show, "show everything about an environment"))
    _add_logs(commands)
    _add_run(commands)
    extending = add_command(commands, "extend", extend, "give an environment more time")
    _one(extending)
    extending.add_argument("time", metavar="TIME", type=duration, help="how much longer: 1h")
    downing = add_command(commands, "down", down, "destroy environments")
    downing.add_argument("ids", metavar="ENV", nargs="*", help="ids, or unique prefixes")
    downing.add_argument(
        "--all", action="store_true", help="all in the store that have an expiry, of all owners"
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
        action="append",
        default=[],
        help="a cloud account in which resources that are missing from the ledger are destroyed, "
        "too",
    )


def _add_logs(commands: Subcommands) -> None:
    parser = add_command(commands, "logs", logs, "print an environment's output")
    _one(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="continue until it is gone")
    parser.add_argument("--tail", metavar="N", type=count, help="only the last N lines")


def _add_run(commands: Subcommands) -> None:
    parser = add_command(
        commands,
        "run",
        run,
        "run a command inside an environment",
        usage="pytest-ephemeral run [-h] [--timeout TIME] ENV -- COMMAND…",
        epilog="The exit status is the command's own, or 5 when it took too long.",
    )
    _one(parser)
    parser.add_argument(
        "--timeout", metavar="TIME", type=duration, help="kill the command after this time: 5m"
    )
    parser.set_defaults(takes_command=True)


def _one(parser: Parser) -> None:
    parser.add_argument("id", metavar="ENV", help="an environment's id, or a unique prefix")


def list_(arguments: argparse.Namespace, output: Printer) -> int:
    """List the ledger with the current state of each environment."""
    ledger = open_project(arguments).ledger
    found = ledger.entries()
    for path in ledger.broken:
        output.say(f"warning: the record {path} in {ledger.store.url} can't be read: left out")
    for one in found:
        if one.problem:
            reason = one.problem.splitlines()[0]
            output.say(f"warning: {one.id} could not be removed: {reason}")
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


def show(arguments: argparse.Namespace, output: Printer) -> int:
    """Show one environment, with the state that its provider reports."""
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


def logs(arguments: argparse.Namespace, output: Printer) -> int:
    """Print a log, and follow it with ``-f``."""
    environment = open_project(arguments).ledger.get(arguments.id)
    provider: Provider = providers.load(environment.provider)
    if output.as_json and arguments.follow:
        arguments.parser.error("--json and --follow can't be combined")
    if output.as_json:
        output.data(id=environment.id, logs=dict(provider.log_files(environment)))
        return 0
    mark = provider.log_mark(environment)
    _write(provider.logs(environment, until=mark, tail=arguments.tail))
    if arguments.follow:
        _follow(provider, environment, mark)
    return 0


def run(arguments: argparse.Namespace, output: Printer) -> int:
    """Run a command, and return its exit status."""
    if not arguments.command:
        arguments.parser.error("the command is missing: put it after `--`")
    environment = open_project(arguments).ledger.get(arguments.id)
    try:
        done = environment.run(arguments.command, timeout=arguments.timeout)
    except subprocess.TimeoutExpired:
        output.say(f"error: the command was killed after {arguments.timeout}")
        return _TIMED_OUT
    # Ended by a signal: negative in Python, 128 + the signal's number in shells.
    status = done.returncode if done.returncode >= 0 else 128 - done.returncode
    if output.as_json:
        output.data(exit_status=status, stdout=done.stdout, stderr=done.stderr)
    else:
        _write(done.stdout)
        print(done.stderr, end="", file=sys.stderr)
    return status


def extend(arguments: argparse.Namespace, output: Printer) -> int:
    """Move an expiry, counted from the current one or from now, whichever is later."""
    project = open_project(arguments)
    environment = project.ledger.get(arguments.id)
    if environment.expires_at is None:
        output.say(f"{environment.id} never expires")
    else:
        later = max(environment.expires_at, datetime.now(UTC)) + timedelta(seconds=arguments.time)
        with progress.show() as say, lifecycle(project, say) as life:
            environment = life.extend(environment, later)
    if output.as_json:
        output.data(environment=environment)
    else:
        output.line(f"{environment.id} expires {until(environment.expires_at)}")
    return 0


def down(arguments: argparse.Namespace, output: Printer) -> int:
    """Destroy all that are named, even if one of them can't be destroyed."""
    if bool(arguments.ids) == arguments.all:
        arguments.parser.error("name the environments, or use --all")
    project = open_project(arguments)
    chosen, errors = _chosen(project.ledger, arguments.ids)
    if not arguments.production:
        _refuse_production(chosen)
    with progress.show() as say, lifecycle(project, say) as life:
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


def reap(arguments: argparse.Namespace, output: Printer) -> int:
    """Destroy what is overdue, and print each with the reason."""
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
    for account in sorted({one.account for one in found if one.account}):
        output.say(f"to destroy those in account {account}, add --account {account}")
    reaper.leftovers(found)
    return 0


def _describe_reaped(one: reaper.Reaped, *, dry_run: bool) -> str:
    """What happened to one thing that was overdue."""
    if one.spared:
        return f"left {one.id}: it is no longer overdue"
    action = "would destroy" if dry_run or one.account else "destroyed"
    return f"{'could not destroy' if one.error else action} {one.id}: {one.reason}"


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
    """Refuse what never expires: it is production, or is being promoted."""
    live = [environment.id for environment in chosen if environment.expires_at is None]
    if live:
        raise PromotionError(
            f"{', '.join(live)} is in production or is being promoted: nothing was destroyed. The "
            "next `pytest-ephemeral promote` retires it. To destroy it now, add --production"
        )


def _state(environment: Environment, now: datetime, status: Status | None) -> str:
    """The state for people: the most serious one that applies."""
    if environment.expires_at is not None and environment.expires_at <= now:
        return "expired"
    if environment.problem or overdue.why(environment, now):
        return "not removed" if environment.problem else "owner gone"
    if environment.state != "ready":
        return environment.state
    if status is None:
        return "unknown"
    if status.state != "running":
        return status.state
    return environment.production or ("kept" if environment.kept else "ready")


def _status(environment: Environment) -> Status | None:
    """Its status; None when the provider can't be reached."""
    try:
        provider: Provider = providers.load(environment.provider)
        return provider.status(environment)
    except (EphemeralError, OSError):
        return None


def _follow(provider: Provider, environment: Environment, mark: str) -> None:
    """Print new output until the environment is gone."""
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
