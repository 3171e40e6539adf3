"""``approval request``, ``approve`` and ``reject``: manual approval of one environment."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pytest_ephemeral import machine
from pytest_ephemeral.cli import progress
from pytest_ephemeral.cli.arguments import (
    add_command,
    add_environment_argument,
    add_group,
    duration,
)
from pytest_ephemeral.cli.output import Printer
from pytest_ephemeral.cli.session import lifecycle, open_project
from pytest_ephemeral.promotion import approval as approvals

if TYPE_CHECKING:
    from pytest_ephemeral.cli.arguments import Subcommands


def add_to(commands: Subcommands) -> None:
    """Add the commands."""
    under = add_group(commands, "approval", "request manual approval of an environment")
    asking = add_command(
        under,
        "request",
        request,
        "request approval of an environment and keep it up until someone decides",
        epilog="With --wait, the exit status is 0 when approved, 4 when rejected, 5 when nobody "
        "responded in time; no response counts as a rejection. After a kill, run it again: it "
        "continues to wait.",
    )
    add_environment_argument(asking)
    asking.add_argument(
        "--wait",
        metavar="TIME",
        type=duration,
        help="wait for the decision, at most this long: 30m",
    )
    _add_deciding(commands, "approve", "approved", "approve an environment")
    _add_deciding(commands, "reject", "rejected", "reject an environment")


def _add_deciding(commands: Subcommands, name: str, decision: str, help: str) -> None:  # noqa: A002
    parser = add_command(commands, name, decide, help)
    add_environment_argument(parser)
    parser.add_argument(
        "--by", metavar="NAME", help="who decides, recorded unverified; by default this user"
    )
    parser.add_argument("--comment", metavar="TEXT", default="", help="why")
    parser.set_defaults(decision=decision)


def request(arguments: argparse.Namespace, output: Printer) -> int:
    """Request approval; with ``--wait``, wait for the decision."""
    project = open_project(arguments)
    environment = project.ledger.get(arguments.id)
    with progress.show() as say, lifecycle(project, say) as life:
        wait = arguments.wait or approvals.DEFAULT_WAIT
        found = approvals.ask(project.ledger, environment, wait=wait, publish=life.publish)
    if not output.as_json:
        output.line(found.url or found.environment)
    if found.state == "pending":
        output.say(
            f"{found.environment} {found}\n"
            f"  to approve: pytest-ephemeral approve {found.environment}\n"
            f"  to reject:  pytest-ephemeral reject {found.environment}"
        )
    if arguments.wait is not None:
        found = approvals.await_decision(project.ledger, found)
    if found.state == "approved":
        output.say(f"{found.environment}: {found}")
    if output.as_json:
        output.data(approval=found)
    found.check()  # a rejection is printed as this error
    return 0


def decide(arguments: argparse.Namespace, output: Printer) -> int:
    """Record a decision on a requested approval. It can't be changed later."""
    project = open_project(arguments)
    owner = machine.this_owner("")
    found = approvals.decide(
        project.ledger,
        arguments.id,
        arguments.decision,
        by=arguments.by or f"{owner.user}@{owner.host}",
        comment=arguments.comment,
        now=datetime.now(UTC),
    )
    output.result(f"{found.environment}: {found}", approval=found)
    return 0
