"""How tests come out: one outcome for each, however many reports it has."""

from __future__ import annotations

import pytest

from pytest_ephemeral.broker.client import BrokerClient
from pytest_ephemeral.errors import OwnerLostError
from pytest_ephemeral.pytest_plugin.worker import REPORT_ATTRIBUTE


class Outcomes:
    """Tells the owner how each test came out, when it is over.

    A test has a report for each of its phases, and one for each of its subtests. It failed if one
    of those failed. What a rerun has made good counts no more.
    """

    def __init__(self, client: BrokerClient) -> None:
        self._client = client
        self._outcomes: dict[str, str] = {}
        self._used: dict[str, list[str]] = {}
        self._again: set[str] = set()
        self._lost = False

    def add(self, report: pytest.TestReport) -> None:
        """Take note of one report."""
        test = report.nodeid
        if report.when != "teardown" or report.failed:  # that of a skipped test has used nothing
            self._used.setdefault(test, []).extend(getattr(report, REPORT_ATTRIBUTE, ()))
        outcome: str = report.outcome
        if outcome == "rerun":  # pytest-rerunfailures' own word
            self._outcomes.pop(test, None)
            self._again.add(test)
        elif report.failed:
            self._outcomes[test] = "failed"
        elif report.skipped:
            self._outcomes.setdefault(test, "skipped")
        elif report.when == "call":
            self._outcomes.setdefault(test, "passed")
        if report.when not in {"setup", "call", "teardown"}:  # so xdist tells of one that killed it
            self._tell(self._client.crash_test, test)

    def finish(self, test: str) -> None:
        """A test is over, or one try of it."""
        if test in self._again:
            self._again.remove(test)
            self._outcomes.pop(test, None)
            return
        used = list(dict.fromkeys(self._used.pop(test, ())))
        outcome = self._outcomes.pop(test, "passed")
        self._tell(self._client.finish_test, test, outcome, used)

    def _tell(self, tell: object, *arguments: object) -> None:
        if self._lost:
            return
        try:
            tell(*arguments)  # type: ignore[operator]
        except OwnerLostError:
            self._lost = True  # it is told at the end, and where an environment is asked for
