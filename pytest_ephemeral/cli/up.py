"""``up``: bring up an environment that outlives the command."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pytest_ephemeral.cli import progress
from pytest_ephemeral.cli.arguments import add_verb, duration
from pytest_ephemeral.cli.output import Output
from pytest_ephemeral.cli.session import lifecycle, open_project

if TYPE_CHECKING:
    from pytest_ephemeral.cli.arguments import Verbs


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "up",
        up,
        "bring up an environment and print its URL",
        epilog="It stays up until `pytest-ephemeral down`, or until its time is over.",
    )
    parser.add_argument(
        "template",
        metavar="TEMPLATE",
        nargs="?",
        help="by default default-template, or the only one",
    )
    parser.add_argument(
        "--ttl", metavar="TIME", type=duration, help="how long it may live, instead of its ttl: 2h"
    )


def up(arguments: argparse.Namespace, output: Output) -> int:
    """Bring one up, keep it, and print where it is.

    Interrupted at any moment before it is kept, nothing of it is left: either it is destroyed
    here, or its guard does so as soon as this process is gone.
    """
    project = open_project(arguments)
    template = project.config.template(arguments.template)
    with progress.shown() as say, lifecycle(project, say) as life:
        timed = life.bring_up(template, ttl=arguments.ttl)
        try:
            environment = life.keep(timed.environment)
        except BaseException:
            life.destroy(timed.environment)
            raise
    if output.as_json:
        output.data(environment=environment, seconds=timed.seconds)
    else:
        output.line(environment.url or environment.id)
    return 0
