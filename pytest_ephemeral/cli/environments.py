"""The commands on environments that are up: list, show, logs, run and extend."""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from pytest_ephemeral import providers
from pytest_ephemeral.cli import progress
from pytest_ephemeral.cli.arguments import add_command, add_environment_argument, count, duration
from pytest_ephemeral.cli.output import Printer, since, until
from pytest_ephemeral.cli.session import lifecycle, open_project
from pytest_ephemeral.environments import overdue
from pytest_ephemeral.environments.removal import describe_problem
from pytest_ephemeral.errors import (
    EnvironmentGoneError,
    EphemeralError,
)
from pytest_ephemeral.models import Environment, to_builtins
from pytest_ephemeral.providers.protocol import Provider, Status

if TYPE_CHECKING:
    from pytest_ephemeral.cli.arguments import Parser, Subcommands

#: Seconds between two reads of a log that is followed.
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


def _add_logs(commands: Subcommands) -> None:
    parser = add_command(commands, "logs", logs, "print an environment's output")
    _one(parser)
    parser.add_argument(
        "-f",
        "--follow",
        action="store_true",
        help="follow the output until the environment is gone",
    )
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
    add_environment_argument(parser)


def list_(arguments: argparse.Namespace, output: Printer) -> int:
    """List the environments of the ledger, each with its current state."""
    ledger = open_project(arguments).ledger
    found = ledger.entries()
    for path in ledger.broken:
        output.say(f"warning: the record {path} in {ledger.store.url} can't be read: left out")
    for one in found:
        if one.problem:
            output.say(f"warning: {describe_problem(one.id, one.problem)}")
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
    """Show one environment's record, and the state that its provider reports."""
    environment = open_project(arguments).ledger.get(arguments.id)
    status = _status(environment)
    if output.as_json:
        output.data(
            environment=environment,
            status=None if status is None else {"state": status.state, "detail": status.detail},
        )
        return 0
    output.facts(
        [
            ("id", environment.id),
            ("template", environment.template),
            ("provider", environment.provider),
            ("image", ", ".join(f"{image.name} {image.key}" for image in environment.images)),
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
    """Print an environment's log; with ``-f``, follow it."""
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
    """Run a command in an environment, and return its exit status."""
    if not arguments.command:
        arguments.parser.error("the command is missing: put it after `--`")
    environment = open_project(arguments).ledger.get(arguments.id)
    try:
        done = environment.run(arguments.command, timeout=arguments.timeout)
    except subprocess.TimeoutExpired:
        output.say(f"error: the command was killed after {arguments.timeout}")
        return _TIMED_OUT
    # After a signal: Python has a negative status, shells have 128 + the signal's number.
    status = done.returncode if done.returncode >= 0 else 128 - done.returncode
    if output.as_json:
        output.data(exit_status=status, stdout=done.stdout, stderr=done.stderr)
    else:
        _write(done.stdout)
        print(done.stderr, end="", file=sys.stderr)
    return status


def extend(arguments: argparse.Namespace, output: Printer) -> int:
    """Add time to an expiry; if it has passed, count from now."""
    project = open_project(arguments)
    environment = project.ledger.get(arguments.id)
    if environment.expires_at is None:
        output.say(f"{environment.id} never expires")
    else:
        later = max(environment.expires_at, datetime.now(UTC)) + timedelta(seconds=arguments.time)
        with progress.show() as say, lifecycle(project, say) as life:
            environment = life.extend(environment, later)
    output.result(
        f"{environment.id} expires {until(environment.expires_at)}", environment=environment
    )
    return 0


def _state(environment: Environment, now: datetime, status: Status | None) -> str:
    """The word in the STATE column; of several that apply, the most serious one."""
    if environment.expires_at is not None and environment.expires_at <= now:
        return "expired"
    if environment.problem or overdue.explain_overdue(environment, now):
        return "not removed" if environment.problem else "owner gone"
    if environment.state != "ready":
        return environment.state
    if status is None:
        return "unknown"
    if status.state != "running":
        return status.state
    return environment.production or ("kept" if environment.kept else "ready")


def _status(environment: Environment) -> Status | None:
    """The environment's status; None if its provider can't be reached."""
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
