"""Which environment is brought up next, ahead of the tests."""

from __future__ import annotations

from collections import deque
from typing import Final

from pytest_ephemeral.broker.entries import Entry

#: How many are brought up at once ahead of the tests. One that a test waits for is never delayed.
PARALLEL: Final = 4


#: Seconds that the end of a run waits for what is still coming up. It is ended all the same.
GRACE: Final = 2.0


class LaunchQueue:
    """What is planned, first needed first. Used with the broker's lock held.

    Attributes:
        ahead: How many that no test has yet asked for are made ready besides session-wide ones.
        launching: Those that are coming up.
    """

    def __init__(self, ahead: int) -> None:
        self.ahead = ahead
        self.launching: set[Entry] = set()
        self._session: deque[Entry] = deque()
        self._others: deque[Entry] = deque()
        self._spare: set[Entry] = set()

    def add(self, entry: Entry) -> None:
        """Bring it up when its turn comes."""
        (self._session if entry.key.scope == "session" else self._others).append(entry)

    def clear(self) -> None:
        """Bring up nothing more."""
        self._session.clear()
        self._others.clear()

    def start(self, entry: Entry) -> None:
        """It is coming up now."""
        self.launching.add(entry)
        if entry.key.scope != "session":
            self._spare.add(entry)

    def take(self, entry: Entry) -> None:
        """A test has it, or nobody will: it is no spare one any more."""
        self._spare.discard(entry)

    def next(self) -> Entry | None:
        """What is to be brought up now, if anything is."""
        if len(self.launching) >= PARALLEL:
            return None
        found = self._pop(self._session)
        if found is None and len(self._spare) < self.ahead:
            found = self._pop(self._others)
        return found

    def _pop(self, queue: deque[Entry]) -> Entry | None:
        while queue:
            entry = queue.popleft()
            if entry.state == "planned" and entry.tests:
                return entry
        return None
