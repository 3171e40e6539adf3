"""Manual approval after the tests have passed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from pytest_ephemeral.durations import Duration
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.promotion import approval
from pytest_ephemeral.promotion.approval_records import Approval


def decide(
    lifecycle: Lifecycle,
    environments: Sequence[Environment],
    seconds: float,
    say: Callable[[str], None],
    interrupted: threading.Event,
) -> tuple[list[str], list[str]]:
    """Request approval of each environment, and wait for all decisions.

    Args:
        lifecycle: The lifecycle of this run.
        environments: The tested environments that are still up.
        seconds: How long to wait; no response counts as a rejection.
        say: Shows the links and the decisions to the user.
        interrupted: Stops waiting when it is set. The environments stay up, the requests open.

    Returns:
        The ids of the environments to keep, and the problems that make the run fail.
    """
    if not environments:
        return [], ["there is no running environment to approve"]
    ledger = lifecycle.project.ledger
    approved: list[str] = []
    problems: list[str] = []
    pause = partial(_pause, interrupted)
    try:
        for one in _send_requests(lifecycle, environments, Duration(seconds), say, problems):
            with _collecting(problems):
                found = approval.await_decision(ledger, one, pause=pause)
                if found.state == "approved":
                    say(f"{found.environment}: {found}")
                    approved.append(found.environment)
                else:
                    problems.append(f"{found.environment}: {found}")
    except _InterruptedError:
        ids = [environment.id for environment in environments]
        advice = "the request stays open: pytest-ephemeral approval request {} --wait TIME"
        return ids, [*problems, *(f"interrupted, and {advice.format(id)}" for id in ids)]
    return approved, problems


class _InterruptedError(Exception):
    """The run no longer waits."""


def _pause(interrupted: threading.Event, seconds: float) -> None:
    if interrupted.wait(seconds):
        raise _InterruptedError


@contextmanager
def _collecting(problems: list[str]) -> Iterator[None]:
    """Add an error of the block to the problems."""
    try:
        yield
    except EphemeralError as error:
        problems.append(str(error))


def _send_requests(
    lifecycle: Lifecycle,
    environments: Sequence[Environment],
    wait: Duration,
    say: Callable[[str], None],
    problems: list[str],
) -> list[Approval]:
    """Record a request for each environment, and show its link."""
    requests: list[Approval] = []
    for environment in environments:
        with _collecting(problems):
            ledger, publish = lifecycle.project.ledger, lifecycle.publish
            one = approval.ask(ledger, environment, wait=wait, publish=publish)
            say(f"{one.environment} {one}\n  {one.url}\n{_how(one)}")
            requests.append(one)
    return requests


def _how(one: Approval) -> str:
    """The commands that approve and reject, for users without the board."""
    return (
        f"  yes: pytest-ephemeral approve {one.environment}\n"
        f"  no:  pytest-ephemeral reject {one.environment}"
    )
