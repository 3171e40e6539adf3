"""``approval request``, ``approve`` and ``reject``: a person decides on one environment."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pytest_ephemeral import machine
from pytest_ephemeral.cli import progress
from pytest_ephemeral.cli.arguments import add_group, add_verb, duration
from pytest_ephemeral.cli.output import Output
from pytest_ephemeral.cli.session import lifecycle, open_project
from pytest_ephemeral.promotion import approval as approvals
from pytest_ephemeral.promotion.approval import Approval, Approvals

if TYPE_CHECKING:
    from pytest_ephemeral.cli.arguments import Verbs


def add_to(verbs: Verbs) -> None:
    """Add the verbs."""
    under = add_group(verbs, "approval", "ask a person to decide on an environment")
    asking = add_verb(
        under,
        "request",
        request,
        "ask for a decision on an environment, which is kept up meanwhile",
        epilog="With --wait, exits with 0 for a yes, 4 for a no, and 5 when nobody decided in time,"
        "\nwhich means no. Killed, it goes on when it is run again.",
    )
    asking.add_argument("id", metavar="ENV", help="its id, or the beginning of it")
    asking.add_argument(
        "--wait", metavar="TIME", type=duration, help="wait that long for the decision: 30m"
    )
    _add_deciding(verbs, "approve", "approved", "say yes to an environment")
    _add_deciding(verbs, "reject", "rejected", "say no to an environment")


def _add_deciding(verbs: Verbs, name: str, decision: str, help: str) -> None:  # noqa: A002
    parser = add_verb(verbs, name, decide, help)
    parser.add_argument("id", metavar="ENV", help="its id, or the beginning of it")
    parser.add_argument("--by", metavar="NAME", help="who decides; by default this user")
    parser.add_argument("--comment", metavar="TEXT", default="", help="why")
    parser.set_defaults(decision=decision)


def request(arguments: argparse.Namespace, output: Output) -> int:
    """Ask, and wait for the decision if that is wanted."""
    project = open_project(arguments)
    environment = project.ledger.get(arguments.id)
    with progress.shown() as say, lifecycle(project, say) as life:
        wait = arguments.wait or approvals.DEFAULT_WAIT
        found = approvals.ask(project.ledger, environment, wait=wait, publish=life.publish)
    if not output.as_json:
        output.line(found.url or found.environment)
    if found.state == "pending":
        output.say(
            f"{found.environment} {found}\n"
            f"  yes: pytest-ephemeral approve {found.environment}\n"
            f"  no:  pytest-ephemeral reject {found.environment}"
        )
    if arguments.wait is not None:
        found = approvals.await_decision(project.ledger, found)
    if found.state != "pending":
        _tell(found, output)
    if output.as_json:
        output.data(approval=found)
    found.check()
    return 0


def decide(arguments: argparse.Namespace, output: Output) -> int:
    """Decide, if nobody has."""
    project = open_project(arguments)
    owner = machine.this_owner("")
    found = Approvals(project.store).decide(
        arguments.id,
        arguments.decision,
        by=arguments.by or f"{owner.user}@{owner.host}",
        comment=arguments.comment,
        now=datetime.now(UTC),
    )
    if output.as_json:
        output.data(approval=found)
    else:
        output.line(f"{found.environment}: {found}")
    return 0


def _tell(found: Approval, output: Output) -> None:
    """A yes is told here; a no is told by the error it becomes."""
    if found.state == "approved":
        output.say(f"{found.environment}: {found}")
