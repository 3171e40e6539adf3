"""The process that the user started: pytest itself, or the controller of pytest-xdist.

It starts the owner process, sends it the tests' outcomes, shows its progress, and calls the hooks
that are implemented in this process.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import pytest

from pytest_ephemeral.broker.process import OwnerProcess
from pytest_ephemeral.broker.protocol import Finished, Opened, ProgressEvent, Settings
from pytest_ephemeral.errors import EphemeralError, OwnerLostError
from pytest_ephemeral.pytest_plugin import base_url, hooks, interrupts, summary
from pytest_ephemeral.pytest_plugin.outcomes import Outcomes
from pytest_ephemeral.pytest_plugin.owner import Successor
from pytest_ephemeral.pytest_plugin.progress import Reporter
from pytest_ephemeral.pytest_plugin.settings import get_timeline, process
from pytest_ephemeral.pytest_plugin.timeline import TimelineRecorder
from pytest_ephemeral.pytest_plugin.worker import IDLE_OPTIONS, WORKER_INPUT, Worker

#: The message when the user interrupts the end of a run.
INTERRUPTED_AGAIN: Final = (
    "interrupted again: the environments that are left are being destroyed in the background; "
    "`pytest-ephemeral list` shows them, `pytest-ephemeral reap` makes sure"
)


class Controller(hooks.HookListener):
    """The ``RunListener`` of a run: connects pytest with the owner process.

    Args:
        config: pytest's configuration.
        settings: The settings of this run.
        owner: The owner process.
    """

    def __init__(self, config: pytest.Config, settings: Settings, owner: OwnerProcess) -> None:
        super().__init__(config)
        self._settings = settings
        self._owner = owner
        self._outcomes = Outcomes(owner.client)
        timeline = get_timeline(config)
        self._timeline = None if timeline is None else TimelineRecorder(timeline)
        self._opening: Any = None
        self._opened: Opened | None = None
        self._finished: Finished | None = None
        self._complaints: list[str] = []
        self._workers: list[Any] = []
        self._workers_down = 0
        self._successor = Successor(owner, self._complain)
        self._over = False
        self._pid = os.getpid()
        self._getpid = os.getpid

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Begin to read the configuration, beside collection, and listen to the owner."""
        config = self._config
        self._reporter = Reporter(config)
        settings = self._settings
        if any(getattr(config.option, name, False) for name in IDLE_OPTIONS):
            settings = settings._replace(early=())
        taken = process(config)
        try:
            self._owner.listen(self, taken.hooks)
            self._opening = self._owner.open(settings, taken)
        except (EphemeralError, OSError) as error:
            raise pytest.UsageError(str(error)) from None
        # After an interrupt before the first test, pytest_sessionfinish is not called, but this is.
        config.add_cleanup(self.close)
        worker = Worker(
            config,
            settings,
            self._owner.client,
            opened=self.wait_until_open,
            process=lambda: process(config),
            refuse=_refuse,
            waiting=self._reporter.wait,
            settle=self._reporter.settle,
        )
        config.pluginmanager.register(worker, "ephemeral-worker")
        if base_url.applies(config) and self._open_or_refuse().default is not None:
            config.pluginmanager.register(base_url, "ephemeral-base-url")

    def wait_until_open(self) -> Opened:
        """The opened run; wait until its configuration has been read.

        Raises:
            EphemeralError: The run can't begin.
        """
        if self._opened is None:
            self._opened = self._opening()
            header = summary.header(self._opened, self._settings, self._config)
            # With -p no:terminal, there is no such option.
            if self._config.get_verbosity() >= 0 and not self._config.getoption("no_header", False):
                self._reporter.print(header)
        return self._opened

    def _open_or_refuse(self) -> Opened:
        try:
            return self.wait_until_open()
        except EphemeralError as error:
            raise pytest.UsageError(str(error)) from None

    # -- the owner's messages; called from a thread ----------------------------------------------

    def on_progress(self, event: ProgressEvent) -> None:
        self._reporter.on_progress(event)
        if self._timeline is not None:
            self._timeline.on_progress(event)

    def print(self, text: str) -> None:
        self._reporter.print(text)

    def warn(self, text: str) -> None:
        self._reporter.warn(text)

    def on_owner_lost(self) -> None:
        """Report that the owner was killed, and start another one to destroy its environments.

        This is called by each thread that notices, and again when the run's store is known.
        """
        self._successor.start(self._opened)

    def _complain(self, text: str) -> None:
        self._complaints.append(text)
        self._reporter.warn(text)

    # -- pytest-xdist ----------------------------------------------------------------------------

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_setupnodes(self, specs: Sequence[Any]) -> None:
        """Refuse workers on other machines, which can't reach the environments."""
        for spec in specs:
            if spec.ssh or spec.socket:
                raise pytest.UsageError(
                    f"--ephemeral-env: the worker {spec} may be on another machine, and can't "
                    "reach the environments of this one: use workers of this machine (-n NUM)"
                )

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Send a worker the address of the owner."""
        if not self._workers:
            self._config.add_cleanup(self._reporter.start_thread())
            self._config.pluginmanager.register(_BeforeWorkersEnd(self), "ephemeral-workers-end")
        self._workers.append(node)
        node.workerinput[WORKER_INPUT] = {
            "address": self._owner.client.address,
            "key": self._owner.client.key,
            "plugins": list(hooks.implementers(self._config.pluginmanager)),
        }

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self) -> None:
        """Count a worker that has run all its tests, or has crashed."""
        self._workers_down += 1

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self) -> None:
        """Stop before the first test if a worker can't run its tests as they are written."""
        self._open_or_refuse()
        if problem := self._owner.client.get_refusal():
            raise pytest.UsageError(problem)

    # -- tests -----------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self) -> None:
        """Write progress from the background."""
        self._reporter.flush()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record an outcome."""
        self._outcomes.add(report)
        if self._timeline is not None:
            self._timeline.add(report)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """End a test with its reruns; environments that only it needed can be destroyed."""
        self._outcomes.finish(nodeid)

    # -- the end ---------------------------------------------------------------------------------

    def pytest_keyboard_interrupt(self) -> None:
        """Begin to destroy the environments at once, and interrupt the workers.

        xdist's workers would wait for 5 s before they interrupt their tests.
        """
        self._owner.interrupt()
        interrupts.interrupt_workers(self._workers)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Destroy all environments, after the last fixture and before pytest's summary."""
        if self._pid != self._getpid():
            return  # a child process that a test has forked
        self._end(session)
        self._judge(session)
        self._record(session)
        self._judge(session)
        self._reporter.flush()

    def end_before_workers(self, session: pytest.Session) -> None:
        """Destroy all environments while workers still live, if workers implement hooks.

        Hooks of a conftest.py below the root are called in workers. Without such hooks, workers and
        environments end at the same time. A worker that still runs tests is ended first, as it
        uses the environments.
        """
        if self._pid != self._getpid():
            return
        listeners = 0
        with suppress(EphemeralError):  # the owner is gone
            if self._workers_down == len(self._workers):
                listeners = self._owner.client.count_listeners()
            else:
                self._owner.client.dismiss()
        if listeners > 1:
            self._end(session)

    def _end(self, session: pytest.Session) -> None:
        if session.exitstatus == pytest.ExitCode.OK and not (self._successor.needed or self._over):
            self._decide()
        self.close()

    def _decide(self) -> None:
        """Request manual approval of the tested environments, if the options say so."""
        if self._settings.approval is None or self._opened is None:
            return
        try:
            self._owner.client.decide(self._reporter.flush)
        except KeyboardInterrupt:
            self._owner.interrupt()
        except EphemeralError as error:
            self._complaints.append(str(error))

    def close(self) -> None:
        """Destroy all environments; only the first call does anything.

        After an interrupt, the owner continues in the background.
        """
        if self._over or self._pid != self._getpid():
            return
        self._over = True
        try:
            if self._opens():
                self._finished = self._owner.client.finish(self._reporter.wait)
        except KeyboardInterrupt:
            self._owner.abandon()
            self._complaints.append(INTERRUPTED_AGAIN)
        except OwnerLostError:
            self.on_owner_lost()
        except EphemeralError as error:
            self._complaints.append(str(error))
        finally:
            self._reporter.settle()
        self._complaints += self._successor.wait()

    def _opens(self) -> bool:
        """Whether there is a run to end; a wrong configuration was reported before."""
        try:
            self._opened = self._opening()
        except OwnerLostError:
            raise
        except EphemeralError:
            return False
        return True

    def _record(self, session: pytest.Session) -> None:
        if self._finished is not None and not self._successor.needed:
            try:
                self._finished = self._owner.client.record(int(session.exitstatus))
            except EphemeralError as error:
                self._complaints.append(str(error))
        if self._timeline is not None:
            from pytest_ephemeral.pytest_plugin import timeline_svg

            try:
                timeline_svg.write(self._timeline.collect(), self._timeline.file)
            except OSError as error:
                self._complaints.append(f"the timeline could not be written: {error}")

    def _judge(self, session: pytest.Session) -> None:
        """Let the run fail if an environment leaked, or crashed without a failed test."""
        failed = self._complaints or (self._finished is not None and self._finished.failed)
        if failed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write the state of every environment."""
        finished = self._finished or Finished()
        finished = finished._replace(complaints=[*finished.complaints, *self._complaints])
        summary.write(terminalreporter, finished, self._settings, self._reporter.warnings)


class _BeforeWorkersEnd:
    """A plugin whose ``pytest_sessionfinish`` runs before xdist's, which ends the workers."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """See ``Controller.end_before_workers``."""
        self._controller.end_before_workers(session)


def _refuse(problem: str) -> None:
    """Stop the run: the tests can't be run as they are written."""
    raise pytest.UsageError(problem)
