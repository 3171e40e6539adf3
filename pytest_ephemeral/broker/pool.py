"""The environments of one run. Each launch and each removal has a thread.

The ``Broker`` decides which environments the tests need, and when.
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
    """Launches and ends environments. Call its methods with ``changed`` held, except ``look``.

    Attributes:
        entries: The environments whose launch was started, in that order.
        current: The environment that tests get for each key.
        needs: Which tests need which environments.
        queue: Which environment to launch next.
        by_id: The environments that came up, by id.
        ending: The environments that are being ended.
        failures: The templates that failed to launch.
        changed: The lock of all this; notified when an environment's state changes.
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
        """The key in ``current``: one for all environments if there is only one."""
        return Key("", "session", "") if self._alone else key

    def find(self, key: Key) -> Entry | None:
        """The environment of a key; None if it was neither planned nor leased."""
        return self.current.get(self._name(key))

    def get(self, key: Key) -> Entry:
        """The environment of a key that was planned or leased."""
        return self.current[self._name(key)]

    def add(self, key: Key, *, planned: bool = True) -> Entry:
        """Add an environment; a planned one joins the queue."""
        entry = Entry(self._name(key), planned=planned)
        self.current[entry.key] = entry
        if planned:
            self.queue.add(entry, self._backend.spares(entry.key.template))
        return entry

    def want(self, key: Key) -> Entry:
        """The environment for a test that waits; launches it now unless it is up or launching."""
        entry = self.find(key)
        if entry is None:
            entry = self.add(key, planned=False)
        elif entry.is_over() or (entry.is_used_up() and not self._alone):
            entry = self._replace(entry)
        if entry.state == "planned":
            self._launch(entry)
        return entry

    def _replace(self, old: Entry) -> Entry:
        """Replace a used or ended environment by a new one."""
        new = self.add(old.key, planned=False)
        new.planned = old.planned
        self.needs.move(old, new)
        if old.state == "ready":
            self._end(old)
        return new

    def pump(self) -> None:
        """Launch environments from the queue, up to its limits."""
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
            except RuntimeError as error:  # a test may be waiting for it
                self._abandon(entry, *explain(error))

    def close(self) -> None:
        """Launch no more environments, and start to end all."""
        self._closing = True
        self.queue.clear()
        for entry in self.entries:
            self.settle(entry)
        self.changed.notify_all()

    def settle(self, entry: Entry) -> None:
        """End it if no test needs it any more, or the pool is closed."""
        lasts = self._lasting and entry.key.scope == "session"
        if entry.state == "ready" and (self._closing or not (lasts or entry.is_wanted())):
            self._end(entry)

    def _end(self, entry: Entry) -> None:
        entry.state = "destroying"
        self.ending.add(entry)
        self.queue.take(entry)
        try:
            threading.Thread(target=self._finish, args=(entry,), daemon=True).start()
        except RuntimeError as error:  # it is removed after pytest has ended
            entry.finish(Ending("leaked", detail=explain(error)[0]))
            self.ending.discard(entry)

    def _abandon(self, entry: Entry, problem: str, error: type[EphemeralError]) -> None:
        """Record that an environment could not be launched, and let waiting tests continue."""
        self.queue.launching.discard(entry)
        self.queue.take(entry)
        entry.state, entry.problem, entry.error = "failed", problem, error
        self.changed.notify_all()

    def _bring_up(self, entry: Entry) -> None:
        environment, seconds, problem = None, dict[str, float](), ""
        try:
            environment, seconds = self._backend.bring_up(entry.key)
        except BaseException as error:  # noqa: BLE001 - the waiting tests must receive it
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
        """Check whether it still runs; records the problem if it does not."""
        if entry.state == "ready" and not entry.problem and entry.environment is not None:
            died = self._backend.exit_reason(entry.environment)
            with self.changed:
                if entry.state == "ready":  # or this run has stopped it meanwhile
                    entry.problem = entry.problem or died

    def _finish(self, entry: Entry) -> None:
        try:
            with entry.changing:  # wait for a rollback
                environment = entry.environment
            assert environment is not None  # it was ready
            died = self._backend.exit_reason(environment)
            with self.changed:  # before the removal: the run may end once that is accepted
                entry.problem = entry.problem or died
            accept = partial(self._accept, entry)
            ending = self._backend.end(
                environment, failed=entry.failed, died=bool(died), accepted=accept
            )
        except BaseException:  # noqa: BLE001 - a leak must always be reported
            ending = Ending("leaked", detail=traceback.format_exc())
        with self.changed:
            entry.finish(ending)
            self.ending.discard(entry)
            self.changed.notify_all()

    def _accept(self, entry: Entry) -> None:
        with self.changed:
            entry.accepted = True
            self.changed.notify_all()
