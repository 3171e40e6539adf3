"""The environments of one run: they come up and end in threads of their own.

The ``Broker`` decides which of them a test needs, and when.
"""

from __future__ import annotations

import threading
import traceback
from functools import partial

from pytest_ephemeral.broker.entries import Backend, Ending, Entry
from pytest_ephemeral.broker.failures import Failures, explain
from pytest_ephemeral.broker.needs import Needs
from pytest_ephemeral.broker.protocol import Key
from pytest_ephemeral.broker.queue import LaunchQueue
from pytest_ephemeral.errors import EphemeralError


class EnvironmentPool:
    """Brings environments up and ends them. Called with ``changed`` held, but for ``look``.

    Attributes:
        entries: All that were asked for, in that order; what is only planned is not among them.
        current: By its key, the environment that tests get.
        needs: Which tests need which.
        queue: What is brought up next.
        by_id: Those that came up.
        ending: Those that are being removed.
        failures: The templates of which none came up.
        changed: Held for all of this, and notified of what waits on it.
    """

    def __init__(self, backend: Backend, *, ahead: int, alone: bool, lasting: bool) -> None:
        self.entries: list[Entry] = []
        self.current: dict[Key, Entry] = {}
        self.needs = Needs()
        self.queue = LaunchQueue(ahead)
        self.by_id: dict[str, Entry] = {}
        self.ending: set[Entry] = set()
        self.failures = Failures()
        self.changed = threading.Condition()
        self._closing = False
        self._backend = backend
        self._alone = alone
        self._lasting = lasting

    def _name(self, key: Key) -> Key:
        """The key that the environment is known by."""
        return Key("", "session", "") if self._alone else key

    def find(self, key: Key) -> Entry | None:
        """The environment of a key, if it was planned or asked for."""
        return self.current.get(self._name(key))

    def get(self, key: Key) -> Entry:
        """The environment of a key that was asked for."""
        return self.current[self._name(key)]

    def add(self, key: Key, *, planned: bool = True) -> Entry:
        """A new environment, to be brought up when its turn comes."""
        entry = Entry(self._name(key), planned=planned)
        self.current[entry.key] = entry
        if planned:
            self.queue.add(entry, self._backend.spares(entry.key.template))
        return entry

    def want(self, key: Key) -> Entry:
        """The environment that a test is waiting for, on its way or up."""
        entry = self.find(key)
        if entry is None:
            entry = self.add(key, planned=False)
        elif entry.is_over() or (entry.is_spent() and not self._alone):
            entry = self._replace(entry)
        if entry.state == "planned":
            self._launch(entry)
        return entry

    def _replace(self, old: Entry) -> Entry:
        """A fresh environment in the place of one that is spent."""
        new = self.add(old.key, planned=False)
        new.planned = old.planned
        self.needs.move(old, new)
        if old.state == "ready":
            self._end(old)
        return new

    def pump(self) -> None:
        """Bring up what will be needed next, as far as the queue allows."""
        while not self._closing and (entry := self.queue.next()):
            self._launch(entry)

    def _launch(self, entry: Entry) -> None:
        self.entries.append(entry)
        if self._closing:
            entry.state, entry.problem = "failed", "the run is ending: no environment is brought up"
        elif not self.failures.copy_to(entry):
            entry.state = "launching"
            self.queue.start(entry)
            try:
                threading.Thread(target=self._bring_up, args=(entry,), daemon=True).start()
            except RuntimeError as error:  # nobody else would say so to who waits
                self._abandon(entry, *explain(error))

    def close(self) -> None:
        """Bring nothing more up, and begin to end everything."""
        self._closing = True
        self.queue.clear()
        for entry in self.entries:
            self.settle(entry)
        self.changed.notify_all()

    def settle(self, entry: Entry) -> None:
        """End it if nobody needs it any more, or everything ends."""
        lasts = self._lasting and entry.key.scope == "session"
        if entry.state == "ready" and (self._closing or not (lasts or entry.is_wanted())):
            self._end(entry)

    def _end(self, entry: Entry) -> None:
        entry.state = "destroying"
        self.ending.add(entry)
        self.queue.take(entry)
        try:
            threading.Thread(target=self._finish, args=(entry,), daemon=True).start()
        except RuntimeError as error:  # it is removed when pytest has ended
            entry.finish(Ending("leaked", detail=explain(error)[0]))
            self.ending.discard(entry)

    def _abandon(self, entry: Entry, problem: str, error: type[EphemeralError]) -> None:
        """It will not come up; the next one may."""
        self.queue.launching.discard(entry)
        self.queue.take(entry)
        entry.state, entry.problem, entry.error = "failed", problem, error
        self.changed.notify_all()

    def _bring_up(self, entry: Entry) -> None:
        environment, seconds, problem = None, dict[str, float](), ""
        try:
            environment, seconds = self._backend.bring_up(entry.key)
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            problem, entry.error = explain(error)
        with self.changed:
            self.queue.launching.discard(entry)
            entry.environment, entry.seconds, entry.problem = environment, seconds, problem
            entry.state = "failed" if problem else "ready"
            if environment is not None:
                self.failures.prove(entry.key.template)
                self.by_id[environment.id] = entry
                self.settle(entry)
            else:
                self.queue.take(entry)
                if not self._closing:
                    self.failures.add(entry)
            self.pump()
            self.changed.notify_all()

    def look(self, entry: Entry) -> None:
        """See whether it still runs."""
        if entry.state == "ready" and not entry.problem and entry.environment is not None:
            died = self._backend.exit_reason(entry.environment)
            with self.changed:
                if entry.state == "ready":  # what is being removed is gone, but not by itself
                    entry.problem = entry.problem or died

    def _finish(self, entry: Entry) -> None:
        try:
            with entry.changing:  # until it has been put back
                environment = entry.environment
            assert environment is not None  # it was ready
            died = self._backend.exit_reason(environment)
            with self.changed:  # noted first: a run may end as soon as the removal is accepted
                entry.problem = entry.problem or died
            accept = partial(self._accept, entry)
            ending = self._backend.end(
                environment, failed=entry.failed, died=bool(died), accepted=accept
            )
        except BaseException:  # noqa: BLE001 - a leak must be told, whatever it came from
            ending = Ending("leaked", detail=traceback.format_exc())
        with self.changed:
            entry.finish(ending)
            self.ending.discard(entry)
            self.changed.notify_all()

    def _accept(self, entry: Entry) -> None:
        with self.changed:
            entry.accepted = True
            self.changed.notify_all()
