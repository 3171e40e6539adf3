"""``promote``, ``rollback`` and ``history``: where a production name points, did and shall."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from pytest_ephemeral.cli import output as printing
from pytest_ephemeral.cli.arguments import add_verb
from pytest_ephemeral.cli.output import Output, short
from pytest_ephemeral.cli.session import lifecycle, open_project
from pytest_ephemeral.environments.progress import Progress
from pytest_ephemeral.errors import ConfigurationError, closest
from pytest_ephemeral.promotion import dns, journal
from pytest_ephemeral.promotion.steps import Event
from pytest_ephemeral.promotion.switch import Switch
from pytest_ephemeral.tables import Promotion

if TYPE_CHECKING:
    from pytest_ephemeral.cli.arguments import Parser, Verbs
    from pytest_ephemeral.project import Project
    from pytest_ephemeral.promotion.journal import Entry

_WORDS: Final = {
    "disarm": "disarming its expiry",
    "journal": "noting what the name says",
    "lower-ttl": "shortening what resolvers remember",
    "check": "checking it directly",
    "switch": "moving the name",
    "propagate": "waiting for the authoritative servers",
    "verify": "checking it through the name",
    "record": "recording it",
    "retire": "giving the old one its end",
    "undo": "taking it back",
    "restore": "putting the name back",
    "rearm": "giving it an expiry again",
}


def add_to(verbs: Verbs) -> None:
    """Add the verbs."""
    promoting = add_verb(
        verbs,
        "promote",
        promote,
        "make an environment production: check it, move the name, verify it, retire the old one",
        epilog="Whatever goes wrong, the name is moved back. Killed, run it again.",
    )
    promoting.add_argument("id", metavar="ENV", help="its id, or the beginning of it")
    promoting.add_argument(
        "--to", metavar="NAME", required=True, help="which [promotion.NAME]: production"
    )
    promoting.add_argument("--dry-run", action="store_true", help="only print the plan")
    _accept(promoting)
    rolling = add_verb(
        verbs, "rollback", rollback, "make what was production before it production again"
    )
    rolling.add_argument("name", metavar="NAME", help="which [promotion.NAME]: production")
    _accept(rolling)
    telling = add_verb(
        verbs, "history", history, "list what was promoted: who, when, what, by whose approval"
    )
    telling.add_argument("name", metavar="NAME", help="which [promotion.NAME]: production")


def _accept(parser: Parser) -> None:
    parser.add_argument(
        "--accept-record",
        action="store_true",
        help="go on from what the name says, although someone else has changed it",
    )


def promote(arguments: argparse.Namespace, output: Output) -> int:
    """Move the name, or say how it would be moved."""
    with _switch(arguments, arguments.to) as switch:
        if arguments.dry_run:
            return _plan(switch, arguments.id, output)
        entry = switch.promote(arguments.id)
    if entry is None:
        output.say(f"{arguments.id} is {arguments.to} already")
        if output.as_json:
            output.data(promoted=None)
        return 0
    return _told(entry, output)


def rollback(arguments: argparse.Namespace, output: Output) -> int:
    """Move the name back."""
    with _switch(arguments, arguments.name) as switch:
        entry = switch.rollback()
    return _told(entry, output)


def history(arguments: argparse.Namespace, output: Output) -> int:
    """List what is over, newest first."""
    project = open_project(arguments)
    promotion = _promotion(project, arguments.name)
    entries = journal.history(project.store, promotion.name)
    if output.as_json:
        output.data(history=entries)
    elif not entries:
        output.say(f"nothing was promoted to {promotion.name} yet")
    else:
        columns = (
            "WHEN",
            "WHAT",
            "ENVIRONMENT",
            "ARTIFACT",
            "IMAGE",
            "REVISION",
            "BY",
            "APPROVED BY",
            "WHY NOT",
        )
        output.table(columns, map(_row, reversed(entries)))
    return 0


def _row(entry: Entry) -> tuple[str, ...]:
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


def _plan(switch: Switch, id: str, output: Output) -> int:
    steps = switch.plan(id)
    if output.as_json:
        output.data(plan=steps)
    elif not steps:
        output.say(f"{id} is {switch.promotion.name} already")
    else:
        for number, step in enumerate(steps, 1):
            output.line(f"{number}. {step}")
    return 0


def _told(entry: Entry, output: Output) -> int:
    if output.as_json:
        output.data(promoted=entry)
    elif entry.outcome == "undone":
        output.line(f"{entry.target} was not promoted: {entry.reason}")
    else:
        output.line(entry.target.url or str(entry.target))
    return 0


@contextmanager
def _switch(arguments: argparse.Namespace, name: str) -> Iterator[Switch]:
    project = open_project(arguments)
    promotion = _promotion(project, name)
    backend = dns.load(promotion, project.config.root)
    with _shown() as tell, lifecycle(project, _warn) as life:
        yield Switch(
            project,
            promotion,
            backend,
            publish=life.publish,
            say=tell,
            accept=arguments.accept_record,
        )


def _warn(told: Progress) -> None:
    print(f"{told.phase}: {told.text}", file=sys.stderr, flush=True)


def _promotion(project: Project, name: str) -> Promotion:
    promotions = project.config.promotions
    if name not in promotions:
        raise ConfigurationError(
            f"{project.config.path}: no promotion {name!r}.{closest(name, promotions)}"
        )
    return promotions[name]


@contextmanager
def _shown() -> Iterator[Callable[[Event], None]]:
    """Show each step on stderr with its time: those that are done, and the one under way."""
    console = printing.console(sys.stderr)

    def lasting(event: Event) -> None:
        seconds = f" ({event.seconds:.2f} s)" if event.seconds >= 0.005 else ""
        console.print(f"{_WORDS[event.step]}: {event.text}{seconds}", soft_wrap=True)

    if not printing.moves(sys.stderr):
        yield lambda event: lasting(event) if event.text else None
        return
    with console.status("") as status:

        def moving(event: Event) -> None:
            if event.text:
                lasting(event)
            else:
                status.update(_WORDS[event.step])

        yield moving
