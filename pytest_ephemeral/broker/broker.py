"""One owner of environments, however many processes run the tests.

The broker knows what the selected tests need, brings environments up ahead of them in threads of
its own, lends them, and ends them behind the tests. What bringing up and ending mean is its
backend's business; this module is only about who needs what, and when.
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
        backend: Brings environments up, and ends them.
        ahead: How many are made ready that no test has yet asked for; see ``LaunchQueue``.
        alone: One environment serves every key (``--ephemeral-attach``).
        lasting: Those of the whole session stay until the end, whoever needs them.

    Attributes:
        entries: All that were asked for, in that order; what is only planned is not among them.
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
        """Say which tests need which environments, first needed first.

        Every worker sends the same plan: sending it again changes nothing.

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
        """Bring up the session's environments of some templates now.

        They end with the last of the tests that need them. One that no planned test needs stays
        to the end.

        Args:
            templates: By name, whether it is put back to its baseline between tests.

        Raises:
            EphemeralError: A provider lacks what it needs.
        """
        for template, rolled_back in templates.items():
            self._backend.check(template, rolled_back=rolled_back)
        with self._changed:
            for template, rolled_back in templates.items():
                self._pool.want(Key(template, "session", "", rolled_back))

    def finish_test(self, test: str, outcome: str = "", used: Sequence[str] = ()) -> None:
        """Say that a test is over, and so are its reruns: what only it needed is ended.

        Args:
            test: Its id.
            outcome: ``passed``, ``failed`` or ``skipped``; empty when that was said already.
            used: The ids of the environments it used.
        """
        with self._changed:
            for id in used:
                if outcome and (found := self._pool.by_id.get(id)):
                    found.count(outcome)
            for entry in self._pool.needs.finish(test):
                self._pool.settle(entry)
            self._pool.pump()

    def crash_test(self, test: str) -> None:
        """Say that a test took its worker with it: whatever it used had a failed test."""
        with self._changed:
            for entry in self._pool.needs.of(test):
                entry.count("failed")
        self.finish_test(test)

    def look_ahead(self, number: int) -> None:
        """Set how many environments are made ready ahead of the tests."""
        with self._changed:
            self._pool.queue.ahead = number
            self._pool.pump()

    # -- lending -------------------------------------------------------------------------------

    def lease(self, key: Key, holder: str) -> Callable[[], Environment]:
        """Lend an environment; returns at once.

        Args:
            key: Which.
            holder: Who asks: a client's connection.

        Returns:
            Waits for it, as long as that takes. Raises a LaunchError when it did not come up (all
            of it the first time, then one line), or an EnvironmentDiedError likewise.
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
            entry.used = entry.seen = True
            self._pool.queue.take(entry)
            self._pool.pump()
            if entry.environment is None or entry.problem:
                entry.release(holder)
                error = entry.error if entry.environment is None else EnvironmentDiedError
                raise error(self._pool.failures.tell(entry))
            return entry.environment

    def roll_back(self, key: Key) -> None:
        """Put an environment back to its baseline, for the one client that uses it."""
        entry = self._pool.get(key)
        self._pool.look(entry)
        try:
            with entry.changing:
                entry.roll_back(self._backend)
        except EphemeralError as error:
            raise EnvironmentDiedError(self._problem(entry, look=False) or str(error)) from None

    def release(self, key: Key, holder: str) -> None:
        """Give an environment back."""
        with self._changed:
            entry = self._pool.get(key)
            entry.release(holder)
            self._pool.settle(entry)

    def drop(self, holder: str) -> None:
        """Release everything that a lost client held."""
        with self._changed:
            for entry in list(self._pool.current.values()):
                if entry.leases.pop(holder, 0):
                    self._pool.settle(entry)

    def look(self, key: Key) -> Look:
        """Check an environment right before a test uses it."""
        entry = self._pool.get(key)
        with self._changed:
            seen, entry.seen = entry.seen, False
        problem = self._problem(entry, look=not seen)
        mark = "" if entry.environment is None else self._backend.mark(entry.environment)
        return Look(problem, mark)

    def evidence(self, key: Key, mark: str | None) -> Evidence | None:
        """The evidence for a failed test: the state, and the log since a mark."""
        entry = self._pool.find(key)
        if entry is None or entry.environment is None:
            return None
        with self._changed:
            if not entry.planned and key.scope == "function":
                entry.failed = True  # it ends before it is known how its test came out
        return Evidence(
            entry.environment,
            self._problem(entry),
            self._backend.logs(entry.environment, mark),
            self._backend.keeps(entry.environment, failed=True),
        )

    def look_at_all(self) -> None:
        """Check which environments have stopped by themselves."""
        for entry in list(self.entries):
            self._pool.look(entry)

    def _problem(self, entry: Entry, *, look: bool = True) -> str:
        """How it has stopped by itself; empty while it runs."""
        if look:
            self._pool.look(entry)
        with self._changed:
            return self._pool.failures.tell(entry) if entry.problem else ""

    # -- the end -------------------------------------------------------------------------------

    def end_all(self) -> None:
        """Begin to end everything, whoever uses it. Returns at once."""
        with self._changed:
            self._pool.close()
        self._backend.cancel()

    def close(self, *, leave: bool = False) -> None:
        """End everything, all at once, and return when that is done.

        Args:
            leave: Don't wait for a removal that the platform has accepted; ``settle`` does.
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
        """Wait for every removal that is still going on."""
        with self._changed:
            self._changed.wait_for(lambda: not self._pool.ending)
