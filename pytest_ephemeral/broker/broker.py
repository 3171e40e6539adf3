"""One owner of environments, however many processes run the tests.

The broker knows what the selected tests need, brings environments up ahead of them in threads of
its own, lends them, and ends them behind the tests. What bringing up and ending mean is its
backend's business; this module is only about who needs what, and when.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from pytest_ephemeral.broker.entries import Backend, Ending, Entry
from pytest_ephemeral.broker.failures import Failures, explain
from pytest_ephemeral.broker.needs import Needs
from pytest_ephemeral.broker.protocol import Evidence, Key, Look
from pytest_ephemeral.broker.queue import GRACE, LaunchQueue
from pytest_ephemeral.errors import EnvironmentDiedError, EphemeralError
from pytest_ephemeral.models import Environment


class Broker:
    """Lends environments. Every method may be called from any thread.

    Attributes:
        entries: All that were asked for, in that order; what is only planned is not among them.
        alone: One environment serves every key (``--ephemeral-attach``).
        lasting: Those of the whole session stay until the end, whoever needs them.
    """

    def __init__(
        self, backend: Backend, *, ahead: int = 1, alone: bool = False, lasting: bool = False
    ) -> None:
        self.entries: list[Entry] = []
        self.alone = alone
        self.lasting = lasting
        self._backend = backend
        self._current: dict[Key, Entry] = {}
        self._needs = Needs()
        self._queue = LaunchQueue(ahead)
        self._by_id: dict[str, Entry] = {}
        self._ending: set[Entry] = set()
        self._failures = Failures()
        self._closing = False
        self._changed = threading.Condition()

    # -- what tests need -----------------------------------------------------------------------

    def plan(self, needs: Mapping[Key, Sequence[str]]) -> None:
        """Say which tests need which environments, first needed first.

        Every worker says so, and all say the same: what is known already changes nothing.

        Raises:
            UnavailableError: None of it can be had: what it runs on is not there.
        """
        for template in dict.fromkeys(key.template for key in needs):
            rolled_back = any(key.rollback for key in needs if key.template == template)
            self._backend.check(template, rolled_back=rolled_back)
        with self._changed:
            for key, tests in needs.items():
                entry = self._current.get(self._same(key)) or self._add(key, planned=True)
                self._needs.add(tests, entry)
            self._pump()

    def start_early(self, templates: Mapping[str, bool]) -> None:
        """Bring up the session's environments of some templates now; they stay to the end.

        By name: whether it is put back to its baseline between tests.

        Raises:
            EphemeralError: None of it can be had: what it runs on is not there.
        """
        for template, rolled_back in templates.items():
            self._backend.check(template, rolled_back=rolled_back)
        with self._changed:
            for template, rolled_back in templates.items():
                key = Key(template, "session", "", rolled_back)
                self._wanted(self._same(key)).stays = True

    def finish_test(self, test: str, outcome: str = "", used: Sequence[str] = ()) -> None:
        """Say that a test is over, and so are its reruns: what only it needed is ended.

        Args:
            test: Its id.
            outcome: ``passed``, ``failed`` or ``skipped``; empty when that was said already.
            used: The ids of the environments it used.
        """
        with self._changed:
            for id in used:
                if outcome and (found := self._by_id.get(id)):
                    found.count(outcome)
            for entry in self._needs.finish(test):
                self._settle(entry)
            self._pump()

    def crash_test(self, test: str) -> None:
        """Say that a test took its worker with it: whatever it used had a failed test."""
        with self._changed:
            for entry in self._needs.of(test):
                entry.count("failed")
        self.finish_test(test)

    def look_ahead(self, number: int) -> None:
        """Say how many are to be made ready that no test has yet asked for."""
        with self._changed:
            self._queue.ahead = number
            self._pump()

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
            entry = self._wanted(self._same(key))
            entry.leases[holder] += 1
        return lambda: self._await(entry, holder)

    def _await(self, entry: Entry, holder: str) -> Environment:
        with self._changed:
            self._changed.wait_for(lambda: entry.state not in {"planned", "launching"})
        self._look(entry)
        with self._changed:
            if holder not in entry.leases:
                raise EphemeralError("nobody waits for it any more")
            entry.used = entry.seen = True
            self._queue.take(entry)
            self._pump()
            if entry.environment is None or entry.problem:
                entry.release(holder)
                error = entry.error if entry.environment is None else EnvironmentDiedError
                raise error(self._failures.tell(entry))
            return entry.environment

    def roll_back(self, key: Key) -> None:
        """Put an environment back to its baseline, for the one client that uses it."""
        entry = self._current[self._same(key)]
        self._look(entry)
        try:
            with entry.changing:
                entry.roll_back(self._backend)
        except EphemeralError as error:
            raise EnvironmentDiedError(self._problem(entry, look=False) or str(error)) from None

    def release(self, key: Key, holder: str) -> None:
        """Give an environment back."""
        with self._changed:
            entry = self._current[self._same(key)]
            entry.release(holder)
            self._settle(entry)

    def drop(self, holder: str) -> None:
        """A client is gone, and with it whatever it held."""
        with self._changed:
            for entry in list(self._current.values()):
                if entry.leases.pop(holder, 0):
                    self._settle(entry)

    def look(self, key: Key) -> Look:
        """How an environment is, right before another test uses it."""
        entry = self._current[self._same(key)]
        with self._changed:
            seen, entry.seen = entry.seen, False
        problem = self._problem(entry, look=not seen)
        mark = "" if entry.environment is None else self._backend.mark(entry.environment)
        return Look(problem, mark)

    def evidence(self, key: Key, mark: str | None) -> Evidence | None:
        """What an environment has to say about a failed test, since a mark in its log."""
        entry = self._current.get(self._same(key))
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
        """See which of those that are up have stopped by themselves."""
        for entry in list(self.entries):
            self._look(entry)

    def _problem(self, entry: Entry, *, look: bool = True) -> str:
        """How it has stopped by itself; empty while it runs."""
        if look:
            self._look(entry)
        with self._changed:
            return self._failures.tell(entry) if entry.problem else ""

    # -- the end -------------------------------------------------------------------------------

    def end_all(self) -> None:
        """Begin to end everything, whoever uses it. Returns at once."""
        with self._changed:
            self._closing = True
            self._queue.clear()
            for entry in self.entries:
                self._settle(entry)
            self._changed.notify_all()
        self._backend.cancel()

    def close(self, *, leave: bool = False) -> None:
        """End everything, all at once, and return when that is done.

        Args:
            leave: Don't wait for a removal that the platform has accepted; ``settle`` does.
        """
        self.end_all()
        with self._changed:
            self._changed.wait_for(lambda: not self._queue.launching, GRACE)
            self._changed.wait_for(
                lambda: not self._ending or (leave and all(one.accepted for one in self._ending))
            )
            left = [entry.environment for entry in self._ending]
        for environment in filter(None, left):
            self._backend.leave(environment)

    def settle(self) -> None:
        """Wait for every removal that is still going on."""
        with self._changed:
            self._changed.wait_for(lambda: not self._ending)

    # -- with the lock held --------------------------------------------------------------------

    def _same(self, key: Key) -> Key:
        """The key that the environment is known by."""
        return Key("", "session", "") if self.alone else key

    def _add(self, key: Key, *, planned: bool) -> Entry:
        """A new environment, to be brought up when its turn comes."""
        entry = Entry(self._same(key), planned=planned)
        self._current[entry.key] = entry
        if planned:
            self._queue.add(entry, self._backend.spares(entry.key.template))
        return entry

    def _wanted(self, key: Key) -> Entry:
        """The environment that a test is waiting for, on its way or up."""
        entry = self._current.get(key)
        if entry is None:
            entry = self._add(key, planned=False)
        elif entry.is_over() or (entry.is_spent() and not self.alone):
            entry = self._replace(entry)
        if entry.state == "planned":
            self._launch(entry)
        return entry

    def _replace(self, old: Entry) -> Entry:
        """A fresh environment in the place of one that is spent."""
        new = self._add(old.key, planned=False)
        new.planned = old.planned
        self._needs.move(old, new)
        if old.state == "ready":
            self._end(old)
        return new

    def _pump(self) -> None:
        """Bring up what will be needed next, as far as that is wise."""
        while not self._closing and (entry := self._queue.next()):
            self._launch(entry)

    def _launch(self, entry: Entry) -> None:
        self.entries.append(entry)
        if self._closing:
            entry.state, entry.problem = "failed", "the run is ending: no environment is brought up"
        elif not self._failures.copy_to(entry):
            entry.state = "launching"
            self._queue.start(entry)
            threading.Thread(target=self._bring_up, args=(entry,), daemon=True).start()

    def _settle(self, entry: Entry) -> None:
        """End it if nobody needs it any more, or everything ends."""
        lasts = self.lasting and entry.key.scope == "session"
        if entry.state == "ready" and (self._closing or not (lasts or entry.is_wanted())):
            self._end(entry)

    def _end(self, entry: Entry) -> None:
        entry.state = "destroying"
        self._ending.add(entry)
        self._queue.take(entry)
        threading.Thread(target=self._finish, args=(entry,), daemon=True).start()

    def _bring_up(self, entry: Entry) -> None:
        environment, seconds, problem = None, dict[str, float](), ""
        try:
            environment, seconds = self._backend.bring_up(entry.key)
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            problem, entry.error = explain(error)
        with self._changed:
            self._queue.launching.discard(entry)
            entry.environment, entry.seconds, entry.problem = environment, seconds, problem
            entry.state = "failed" if problem else "ready"
            if environment is not None:
                self._failures.prove(entry.key.template)
                self._by_id[environment.id] = entry
                self._settle(entry)
            else:
                self._queue.take(entry)
                if not self._closing:
                    self._failures.add(entry)
            self._pump()
            self._changed.notify_all()

    def _look(self, entry: Entry) -> None:
        """See whether it still runs."""
        if entry.state == "ready" and not entry.problem and entry.environment is not None:
            died = self._backend.exit_reason(entry.environment)
            with self._changed:
                if entry.state == "ready":  # what is being removed is gone, but not by itself
                    entry.problem = entry.problem or died

    def _finish(self, entry: Entry) -> None:
        try:
            with entry.changing:  # until it has been put back
                environment = entry.environment
            assert environment is not None  # it was ready
            died = self._backend.exit_reason(environment)
            with self._changed:  # noted first: a run may end as soon as the removal is accepted
                entry.problem = entry.problem or died
            accept = partial(self._accept, entry)
            ending = self._backend.end(
                environment, failed=entry.failed, died=bool(died), accepted=accept
            )
        except BaseException:  # noqa: BLE001 - a leak must be told, whatever it came from
            ending = Ending("leaked", detail=traceback.format_exc())
        with self._changed:
            entry.finish(ending)
            self._ending.discard(entry)
            self._changed.notify_all()

    def _accept(self, entry: Entry) -> None:
        with self._changed:
            entry.accepted = True
            self._changed.notify_all()
