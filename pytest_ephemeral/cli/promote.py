"""``promote``, ``rollback`` and ``history``: change and list what is in production."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from pytest_ephemeral.cli import output as printing
from pytest_ephemeral.cli.arguments import add_command, add_environment_argument
from pytest_ephemeral.cli.output import Printer, short
from pytest_ephemeral.cli.session import lifecycle, open_project
from pytest_ephemeral.environments.progress import Progress
from pytest_ephemeral.promotion import dns, journal
from pytest_ephemeral.promotion.promoter import Promoter
from pytest_ephemeral.promotion.steps import StepEvent

if TYPE_CHECKING:
    from pytest_ephemeral.cli.arguments import Parser, Subcommands
    from pytest_ephemeral.promotion.journal import HistoryEntry

_WORDS: Final = {
    "disarm": "turning off its expiry",
    "journal": "current DNS record",
    "lower-ttl": "lowering the record's TTL",
    "check": "checking it directly",
    "switch": "updating the DNS record",
    "propagate": "waiting for the authoritative servers",
    "verify": "checking it through the name",
    "record": "recording the promotion",
    "retire": "scheduling the end of the previous one",
    "retry": "waiting for the name server",
    "undo": "undoing the promotion",
    "restore": "restoring the DNS record",
    "rearm": "turning its expiry on again",
}


def add_to(commands: Subcommands) -> None:
    """Add the commands."""
    promoting = add_command(
        commands,
        "promote",
        promote,
        "make an environment production: check it, update DNS, verify, retire the old one",
        epilog="If a step fails, the DNS record is restored. After a kill, run the same command "
        "again: it completes the promotion.",
    )
    add_environment_argument(promoting)
    promoting.add_argument(
        "--to", metavar="NAME", required=True, help="which [promotion.NAME]: production"
    )
    promoting.add_argument("--dry-run", action="store_true", help="only print the plan")
    _accept(promoting)
    rolling = add_command(
        commands, "rollback", rollback, "make the previous environment production again"
    )
    _add_name(rolling)
    _accept(rolling)
    telling = add_command(
        commands, "history", history, "list promotions: when, what, by whom, approved by whom"
    )
    _add_name(telling)


def _add_name(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="which [promotion.NAME]: production")


def _accept(parser: Parser) -> None:
    parser.add_argument(
        "--accept-record",
        action="store_true",
        help="continue from the current DNS record, even if someone else changed it",
    )


def promote(arguments: argparse.Namespace, output: Printer) -> int:
    """Promote an environment; with ``--dry-run``, only print the plan."""
    with _open_promoter(arguments, arguments.to) as promoter:
        if arguments.dry_run:
            return _plan(promoter, arguments.id, output)
        entry = promoter.promote(arguments.id)
    if entry is None:
        output.say(f"{arguments.id} is already {arguments.to}")
        if output.as_json:
            output.data(promoted=None)
        return 0
    return _print_entry(entry, output)


def rollback(arguments: argparse.Namespace, output: Printer) -> int:
    """Make the environment production again that was so before the current one."""
    with _open_promoter(arguments, arguments.name) as promoter:
        entry = promoter.rollback()
    return _print_entry(entry, output)


def history(arguments: argparse.Namespace, output: Printer) -> int:
    """List the promotions that have ended, newest first."""
    project = open_project(arguments)
    promotion = project.config.promotion(arguments.name)
    entries = journal.history(project.store, promotion.name)
    if output.as_json:
        output.data(history=entries)
    elif not entries:
        output.say(f"nothing has been promoted to {promotion.name} yet")
    else:
        columns = (
            "WHEN",
            "WHAT",
            "ENVIRONMENT",
            "ARTIFACT",
            "IMAGE",
            "REVISION",
            "BY",
            "APPROVED BY (NOT VERIFIED)",
            "FAILURE REASON",
        )
        output.table(columns, map(_row, reversed(entries)))
    return 0


def _row(entry: HistoryEntry) -> tuple[str, ...]:
    target = entry.target
    return (
        f"{entry.finished_at:%Y-%m-%d %H:%M:%S}",
        entry.kind if entry.outcome == "done" else f"{entry.kind}, undone",
        target.environment or "-",
        target.artifact or "-",
        short(target.image.key) if target.image else "-",
        target.revision[:12] or "-",
        entry.by,
        target.approved_by or "-",
        entry.reason.partition("\n")[0],
    )


def _plan(promoter: Promoter, id: str, output: Printer) -> int:
    steps = promoter.plan(id)
    if output.as_json:
        output.data(plan=steps)
    elif not steps:
        output.say(f"{id} is already {promoter.promotion.name}")
    else:
        for number, step in enumerate(steps, 1):
            output.line(f"{number}. {step}")
    return 0


def _print_entry(entry: HistoryEntry, output: Printer) -> int:
    text = entry.target.url or str(entry.target)
    if entry.outcome == "undone":
        text = f"{entry.target} was not promoted: {entry.reason}"
    output.result(text, promoted=entry)
    return 0


@contextmanager
def _open_promoter(arguments: argparse.Namespace, name: str) -> Iterator[Promoter]:
    project = open_project(arguments)
    promotion = project.config.promotion(name)
    backend = dns.load(promotion, project.config.root)
    with _show_steps() as tell, lifecycle(project, _warn) as life:
        yield Promoter(
            project,
            promotion,
            backend,
            publish=life.publish,
            say=tell,
            accept=arguments.accept_record,
        )


def _warn(event: Progress) -> None:
    print(f"{event.phase}: {event.text}", file=sys.stderr, flush=True)


@contextmanager
def _show_steps() -> Iterator[Callable[[StepEvent], None]]:
    """Show the steps on stderr: each finished one with its time, and the current one."""
    console = printing.console(sys.stderr)

    def print_step(event: StepEvent) -> None:
        seconds = f" ({event.seconds:.2f} s)" if event.seconds >= 0.005 else ""
        console.print(f"{_WORDS[event.step]}: {event.text}{seconds}", soft_wrap=True)

    if not printing.is_terminal(sys.stderr):
        yield lambda event: print_step(event) if event.text else None
        return
    with console.status("") as status:

        def show_step(event: StepEvent) -> None:
            if event.text:
                print_step(event)
            else:
                status.update(_WORDS[event.step])

        yield show_step
