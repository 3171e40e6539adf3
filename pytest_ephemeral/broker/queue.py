"""Which environment is brought up next, ahead of the tests."""

from __future__ import annotations

from collections import deque
from typing import Final, Literal, NamedTuple

from pytest_ephemeral.broker.entries import Entry

#: How many are brought up at once ahead of the tests. One that a test waits for is never delayed.
PARALLEL: Final = 4
#: Seconds that the end of a run waits for what is still coming up. It is ended all the same.
GRACE: Final = 2.0


class _Pool(NamedTuple):
    """Environments that are counted together: all of a template, if that has spares of its own."""

    scope: Literal["session", "other"]
    template: str = ""


_SESSION: Final = _Pool("session")


class LaunchQueue:
    """What is planned, first needed first. Used with the broker's lock held.

    Attributes:
        ahead: How many that no test has yet asked for are made ready besides session-wide ones.
        launching: Those that are coming up.
    """

    def __init__(self, ahead: int) -> None:
        self.ahead = ahead
        self.launching: set[Entry] = set()
        self._spares: dict[str, int] = {}
        self._planned: dict[_Pool, deque[Entry]] = {_SESSION: deque()}
        self._ready: set[Entry] = set()

    def add(self, entry: Entry, spares: int = 0) -> None:
        """Bring it up when its turn comes.

        Args:
            entry: Which.
            spares: How many of its template are made ready, if more than ``ahead``.
        """
        self._spares[entry.key.template] = spares
        self._planned.setdefault(self._pool(entry), deque()).append(entry)

    def clear(self) -> None:
        """Bring up nothing more."""
        self._planned = {}

    def start(self, entry: Entry) -> None:
        """It is coming up now."""
        self.launching.add(entry)
        self._ready.add(entry)

    def take(self, entry: Entry) -> None:
        """A test has it, or nobody will: it is no spare one any more."""
        self._ready.discard(entry)

    def next(self) -> Entry | None:
        """What is to be brought up now, if anything is."""
        for pool, queue in self._planned.items():
            while queue and not (queue[0].state == "planned" and queue[0].tests):
                queue.popleft()
            if queue and self._has_room(pool):
                return queue.popleft()
        return None

    def _has_room(self, pool: _Pool) -> bool:
        spares = self._spares.get(pool.template, 0)
        if len(self.launching) >= max(PARALLEL, spares):
            return False
        ready = sum(self._pool(one) == pool for one in self._ready)
        return pool == _SESSION or ready < max(self.ahead, spares)

    def _pool(self, entry: Entry) -> _Pool:
        if entry.key.scope == "session":
            return _SESSION
        template = entry.key.template
        return _Pool("other", template if self._spares.get(template) else "")
