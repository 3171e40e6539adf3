"""Manual approval after the tests have passed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

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
    requests = _ApprovalRequests(lifecycle, seconds, say, interrupted)
    try:
        for one in [requests.send(environment) for environment in environments]:
            if one is not None:
                requests.await_decision(one)
    except _InterruptedError:
        ids = [environment.id for environment in environments]
        advice = "the request stays open: pytest-ephemeral approval request {} --wait TIME"
        return ids, [*requests.problems, *(f"interrupted, and {advice.format(id)}" for id in ids)]
    return requests.approved, requests.problems


class _InterruptedError(Exception):
    """The run no longer waits."""


class _ApprovalRequests:
    """Sends the requests of one run, and collects the decisions."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        seconds: float,
        say: Callable[[str], None],
        interrupted: threading.Event,
    ) -> None:
        self.approved: list[str] = []
        self.problems: list[str] = []
        self._lifecycle = lifecycle
        self._ledger = lifecycle.project.ledger
        self._wait = Duration(seconds)
        self._say = say
        self._interrupted = interrupted

    def send(self, environment: Environment) -> Approval | None:
        """Record a request and show its link; None if it could not be recorded."""
        publish = self._lifecycle.publish
        try:
            one = approval.ask(self._ledger, environment, wait=self._wait, publish=publish)
        except EphemeralError as error:
            self.problems.append(str(error))
            return None
        self._say(f"{one.environment} {one}\n  {one.url}\n{_how(one)}")
        return one

    def await_decision(self, one: Approval) -> None:
        """Wait for a decision, or for the end of the waiting time."""
        try:
            found = approval.await_decision(self._ledger, one, pause=self._pause)
        except EphemeralError as error:
            self.problems.append(str(error))
            return
        if found.state == "approved":
            self._say(f"{found.environment}: {found}")
            self.approved.append(found.environment)
        else:
            self.problems.append(f"{found.environment}: {found}")

    def _pause(self, seconds: float) -> None:
        if self._interrupted.wait(seconds):
            raise _InterruptedError


def _how(one: Approval) -> str:
    """The commands that approve and reject, for users without the board."""
    return (
        f"  yes: pytest-ephemeral approve {one.environment}\n"
        f"  no:  pytest-ephemeral reject {one.environment}"
    )
