"""Decide which environment to launch next, before a test waits for it."""

from __future__ import annotations

from collections import deque
from typing import Final, Literal, NamedTuple

from pytest_ephemeral.broker.entries import Entry

#: The limit of parallel launches. It does not delay an environment that a test waits for.
PARALLEL: Final = 4
#: Seconds that the end of a run waits for launches in progress. They are cleaned up in any case.
GRACE: Final = 2.0


class _Pool(NamedTuple):
    """A group of environments with one limit. A template with ``spares`` is a group of its own."""

    scope: Literal["session", "other"]
    template: str = ""


_SESSION: Final = _Pool("session")


class LaunchQueue:
    """The planned environments, in the order of first use. Call it with the broker's lock held.

    Attributes:
        ahead: How many unused environments to keep ready, in addition to those of session scope.
        launching: The environments that are being launched.
    """

    def __init__(self, ahead: int) -> None:
        self.ahead = ahead
        self.launching: set[Entry] = set()
        self._spares: dict[str, int] = {}
        self._planned: dict[_Pool, deque[Entry]] = {_SESSION: deque()}
        self._ready: set[Entry] = set()

    def add(self, entry: Entry, spares: int = 0) -> None:
        """Append an environment.

        Args:
            entry: The environment.
            spares: The setting of its template: how many to keep ready, if more than ``ahead``.
        """
        self._spares[entry.key.template] = spares
        self._planned.setdefault(self._pool(entry), deque()).append(entry)

    def clear(self) -> None:
        """Remove all planned environments."""
        self._planned = {}

    def start(self, entry: Entry) -> None:
        """Count an environment as launching, and as ready for a test."""
        self.launching.add(entry)
        self._ready.add(entry)

    def take(self, entry: Entry) -> None:
        """Stop counting an environment as ready for a test: it is in use, ended or failed."""
        self._ready.discard(entry)

    def next(self) -> Entry | None:
        """Remove and return the environment to launch now; None if there is none or no room."""
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
