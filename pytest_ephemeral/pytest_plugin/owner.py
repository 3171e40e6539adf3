"""The process that owns a run's environments: pytest itself, or the controller of pytest-xdist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.pytest_plugin import summary
from pytest_ephemeral.pytest_plugin.borrower import REPORT_ATTRIBUTE, WORKER_INPUT, borrow
from pytest_ephemeral.pytest_plugin.lending import Evidence, Look
from pytest_ephemeral.pytest_plugin.needs import Key
from pytest_ephemeral.pytest_plugin.run import Run
from pytest_ephemeral.pytest_plugin.settings import Settings

if TYPE_CHECKING:
    from pytest_ephemeral.pytest_plugin.remote import Server

#: The holder of leases in a process that is its own owner.
MAIN: Final = "main"


class DirectDesk:
    """The desk of a process that runs tests and owns the environments too."""

    def __init__(self, run: Run) -> None:
        self._broker = run.broker
        self._reporter = run.reporter

    def plan(self, needs: Mapping[Key, Sequence[str]]) -> None:
        """See ``Broker.plan``."""
        self._broker.plan(needs)

    def refuse(self, problem: str) -> None:
        """The tests can't be run as they are written."""
        raise pytest.UsageError(problem)

    def lease(self, key: Key) -> Environment:
        """See ``Broker.lease``; meanwhile people see what it is waiting for."""
        try:
            return self._broker.lease(key, MAIN, self._reporter.wait)
        finally:
            self._reporter.settle()

    def release(self, key: Key) -> None:
        """See ``Broker.release``."""
        self._broker.release(key, MAIN)

    def look(self, key: Key) -> Look:
        """See ``Broker.look``."""
        return self._broker.look(key)

    def evidence(self, key: Key, mark: str | None) -> Evidence | None:
        """See ``Broker.evidence``."""
        return self._broker.evidence(key, mark)


class Opener:
    """Reads the configuration when a session starts: ``--help`` and ``--markers`` start none."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self._config = config
        self._settings = settings

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Open the run, before fixtures are collected and xdist starts its workers."""
        config = self._config
        try:
            run = Run.open(config, self._settings)
        except EphemeralError as error:
            raise pytest.UsageError(str(error)) from None
        # An interrupt before the first test skips pytest_sessionfinish, but never this.
        config.add_cleanup(run.close)
        config.pluginmanager.register(Owner(config, run), "ephemeral-owner")
        borrow(config, run.settings, DirectDesk(run), known=run.templates, default=run.default)


class Owner:
    """Owns all environments of a run, and sees to their end."""

    def __init__(self, config: pytest.Config, run: Run) -> None:
        self._config = config
        self._run = run
        self._server: Server | None = None

    def pytest_report_header(self) -> str | None:
        """Say what is on."""
        return summary.header(self._run, self._config)

    # -- pytest-xdist --------------------------------------------------------------------------

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_setupnodes(self, specs: Sequence[Any]) -> None:
        """Refuse workers that could not reach the environments, before any is started."""
        for spec in specs:
            if spec.ssh or spec.socket:
                raise pytest.UsageError(
                    f"--ephemeral-env: the worker {spec} may be on another machine, and can't "
                    "reach the environments of this one: use workers of this machine (-n NUM)"
                )

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker where the broker is."""
        server = self._serving()
        self._run.broker.ahead = node.workerinput["workercount"]
        node.workerinput[WORKER_INPUT] = {
            "address": server.address,
            "authkey": server.authkey,
            "templates": self._run.templates,
            "default": self._run.default,
        }

    def _serving(self) -> Server:
        """The broker's socket; opened for the first worker."""
        if self._server is None:
            from pytest_ephemeral.pytest_plugin.remote import Server

            self._server = Server(self._run.broker)
            self._config.add_cleanup(self._server.close)
            self._config.add_cleanup(self._run.reporter.start_thread())
        return self._server

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self) -> None:
        """Stop before the first test when a worker can't run its tests as they are written."""
        if self._server is not None and self._server.refused:
            raise pytest.UsageError(self._server.refused)

    # -- tests ---------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self) -> None:
        """Say what has happened in the background."""
        self._run.reporter.flush()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count how the tests of each environment came out."""
        if report.when not in {"setup", "call", "teardown"}:
            self._run.broker.crashed(report.nodeid)  # so xdist tells of a test that killed it
        elif report.when == "call" or not report.passed:
            for id in getattr(report, REPORT_ATTRIBUTE, ()):
                self._run.broker.count(id, report.outcome)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A test is over, and so are its reruns: what only it needed can go."""
        self._run.broker.finished(nodeid)

    # -- the end -------------------------------------------------------------------------------

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """End everything after the last fixture, and before pytest sums up."""
        if session.exitstatus == pytest.ExitCode.OK and not self._run.failed():
            self._run.decide()
        self._run.close()
        self._run.reporter.flush()
        self._judge(session)
        self._run.record(int(session.exitstatus))
        self._judge(session)

    def _judge(self, session: pytest.Session) -> None:
        """A run is not green when something leaked, or crashed without a test noticing."""
        if self._run.failed() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what became of every environment."""
        summary.write(terminalreporter, self._run)
