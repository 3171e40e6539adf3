"""Decide which environments the tests of a run need, and when.

The broker serves all processes that run tests. It brings environments up before the tests need
them, lends them to the tests, and ends each one after the last test that needs it. The backend
launches and destroys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pytest_ephemeral.broker.entries import Backend, Entry
from pytest_ephemeral.broker.pool import EnvironmentPool
from pytest_ephemeral.broker.protocol import Evidence, Key, Look
from pytest_ephemeral.broker.queue import GRACE
from pytest_ephemeral.errors import EnvironmentDiedError, EphemeralError
from pytest_ephemeral.models import Environment


class Broker:
    """Lends environments. Every method may be called from any thread.

    Args:
        backend: Launches and destroys environments.
        ahead: How many unused environments to keep ready; see ``LaunchQueue``.
        alone: Whether one environment serves every key (``--ephemeral-attach``).
        lasting: Whether environments of session scope stay until the end of the run.

    Attributes:
        entries: The environments whose launch was started, in that order.
    """

    def __init__(
        self, backend: Backend, *, ahead: int = 1, alone: bool = False, lasting: bool = False
    ) -> None:
        self._backend = backend
        self._pool = EnvironmentPool(backend, ahead=ahead, alone=alone, lasting=lasting)
        self._changed = self._pool.changed
        self.entries = self._pool.entries

    # -- what tests need -----------------------------------------------------------------------

    def plan(self, needs: Mapping[Key, Sequence[str]]) -> None:
        """Receive the plan: which tests need which environments.

        Every worker sends the same plan. Receiving it again changes nothing.

        Args:
            needs: The ids of the tests that need each environment, in the order of first use.

        Raises:
            UnavailableError: A provider lacks what it needs.
        """
        for template in dict.fromkeys(key.template for key in needs):
            rolled_back = any(key.rollback for key in needs if key.template == template)
            self._backend.check(template, rolled_back=rolled_back)
        with self._changed:
            for key, tests in needs.items():
                entry = self._pool.find(key) or self._pool.add(key)
                entry.planned = True
                self._pool.needs.add(tests, entry)
            self._pool.pump()

    def start_early(self, templates: Mapping[str, bool]) -> None:
        """Bring up the session environments of some templates now.

        Each ends after the last test that needs it, or with the run if no planned test does.

        Args:
            templates: The templates' names, and whether each is rolled back between tests.

        Raises:
            EphemeralError: A provider lacks what it needs.
        """
        for template, rolled_back in templates.items():
            self._backend.check(template, rolled_back=rolled_back)
        with self._changed:
            for template, rolled_back in templates.items():
                self._pool.want(Key(template, "session", "", rolled_back))

    def finish_test(self, test: str, outcome: str = "", used: Sequence[str] = ()) -> None:
        """Finish a test and its reruns; end the environments that no other test needs.

        Args:
            test: The test's id.
            outcome: ``passed``, ``failed`` or ``skipped``; empty if it was counted already.
            used: The ids of the environments that it used.
        """
        with self._changed:
            for id in used:
                if outcome and (found := self._pool.by_id.get(id)):
                    found.count(outcome)
            for entry in self._pool.needs.finish(test):
                self._pool.settle(entry)
            self._pool.pump()

    def crash_test(self, test: str) -> None:
        """Finish a test whose worker crashed; it counts as failed for all its environments."""
        with self._changed:
            for entry in self._pool.needs.of(test):
                entry.count("failed")
        self.finish_test(test)

    def look_ahead(self, number: int) -> None:
        """Set how many unused environments to keep ready."""
        with self._changed:
            self._pool.queue.ahead = number
            self._pool.pump()

    # -- lending -------------------------------------------------------------------------------

    def lease(self, key: Key, holder: str) -> Callable[[], Environment]:
        """Lend an environment; returns at once.

        Args:
            key: The environment's key.
            holder: The client's id.

        Returns:
            A function that waits until the environment is up, and returns it. It raises a
            LaunchError if the launch failed, and an EnvironmentDiedError if the environment stopped
            by itself. The message has all details the first time, and one line from then on.
        """
        with self._changed:
            entry = self._pool.want(key)
            entry.leases[holder] += 1
        return lambda: self._await(entry, holder)

    def _await(self, entry: Entry, holder: str) -> Environment:
        with self._changed:
            self._changed.wait_for(lambda: entry.state not in {"planned", "launching"})
        self._pool.look(entry)
        with self._changed:
            if holder not in entry.leases:
                raise EphemeralError("no test needs it any more")
            entry.used = entry.checked = True
            self._pool.queue.take(entry)
            self._pool.pump()
            if entry.environment is None or entry.problem:
                entry.release(holder)
                error = entry.error if entry.environment is None else EnvironmentDiedError
                raise error(self._pool.failures.describe(entry))
            return entry.environment

    def roll_back(self, key: Key) -> None:
        """Roll an environment back to its baseline, for the one client that uses it.

        Raises:
            EnvironmentDiedError: The rollback failed, now or before.
        """
        entry = self._pool.get(key)
        self._pool.look(entry)
        try:
            with entry.changing:
                entry.roll_back(self._backend)
        except EphemeralError as error:
            raise EnvironmentDiedError(self._problem(entry, look=False) or str(error)) from None

    def release(self, key: Key, holder: str) -> None:
        """Take back one lease of an environment; end it if no test needs it any more."""
        with self._changed:
            entry = self._pool.get(key)
            entry.release(holder)
            self._pool.settle(entry)

    def drop(self, holder: str) -> None:
        """Take back all leases of a client that has disconnected."""
        with self._changed:
            for entry in list(self._pool.current.values()):
                if entry.leases.pop(holder, 0):
                    self._pool.settle(entry)

    def look(self, key: Key) -> Look:
        """Check an environment right before a test uses it.

        Its state is not read again if the lease has just done that.
        """
        entry = self._pool.get(key)
        with self._changed:
            checked, entry.checked = entry.checked, False
        problem = self._problem(entry, look=not checked)
        mark = "" if entry.environment is None else self._backend.mark(entry.environment)
        return Look(problem, mark)

    def evidence(self, key: Key, mark: str | None) -> Evidence | None:
        """The state and log of an environment, for the report of a failed test.

        Args:
            key: The environment's key.
            mark: The end of the log before the test; None for the whole log.

        Returns:
            None if the environment did not come up.
        """
        entry = self._pool.find(key)
        if entry is None or entry.environment is None:
            return None
        with self._changed:
            if not entry.planned and key.scope == "function":
                entry.failed = True  # it ends before its test's outcome arrives
        return Evidence(
            entry.environment,
            self._problem(entry),
            self._backend.logs(entry.environment, mark),
            self._backend.keeps(entry.environment, failed=True),
        )

    def look_at_all(self) -> None:
        """Check all environments; record the problem of each that has stopped by itself."""
        for entry in list(self.entries):
            self._pool.look(entry)

    def _problem(self, entry: Entry, *, look: bool = True) -> str:
        """Why it can't be used; empty if it can."""
        if look:
            self._pool.look(entry)
        with self._changed:
            return self._pool.failures.describe(entry) if entry.problem else ""

    # -- the end -------------------------------------------------------------------------------

    def end_all(self) -> None:
        """Start to end all environments, even those in use. Returns at once."""
        with self._changed:
            self._pool.close()
        self._backend.cancel()

    def close(self, *, leave: bool = False) -> None:
        """End all environments in parallel, and wait until they are gone.

        Args:
            leave: Wait only until the platform has accepted each removal; ``settle`` waits for the
                rest.
        """
        self.end_all()
        with self._changed:
            self._changed.wait_for(lambda: not self._pool.queue.launching, GRACE)
            ending = self._pool.ending
            self._changed.wait_for(
                lambda: not ending or (leave and all(one.accepted for one in ending))
            )
            left = [entry.environment for entry in ending]
        for environment in filter(None, left):
            self._backend.leave(environment)

    def settle(self) -> None:
        """Wait for every removal that has not finished."""
        with self._changed:
            self._changed.wait_for(lambda: not self._pool.ending)
