"""The outcomes of tests: one for each test, from all its reports."""

from __future__ import annotations

import pytest

from pytest_ephemeral.broker.client import BrokerClient
from pytest_ephemeral.errors import OwnerLostError
from pytest_ephemeral.pytest_plugin.worker import REPORT_ATTRIBUTE


class Outcomes:
    """Sends the owner the outcome of each test at its end.

    A test has a report for each phase, and for each subtest. It has failed if one of them has
    failed. A failure before a rerun does not count.
    """

    def __init__(self, client: BrokerClient) -> None:
        self._client = client
        self._outcomes: dict[str, str] = {}
        self._used: dict[str, list[str]] = {}
        self._again: set[str] = set()
        self._lost = False

    def add(self, report: pytest.TestReport) -> None:
        """Add a report."""
        test = report.nodeid
        if report.when != "teardown" or report.failed:  # a skipped test has used nothing
            self._used.setdefault(test, []).extend(getattr(report, REPORT_ATTRIBUTE, ()))
        outcome: str = report.outcome
        if outcome == "rerun":  # of pytest-rerunfailures
            self._outcomes.pop(test, None)
            self._again.add(test)
        elif report.failed:
            self._outcomes[test] = "failed"
        elif report.skipped:
            self._outcomes.setdefault(test, "skipped")
        elif report.when == "call":
            self._outcomes.setdefault(test, "passed")
        if report.when not in {"setup", "call", "teardown"}:  # xdist: the worker crashed in it
            self._tell(self._client.crash_test, test)

    def finish(self, test: str) -> None:
        """End a test, or one run of it before a rerun."""
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
            self._lost = True  # reported at the end, and to tests that need an environment
