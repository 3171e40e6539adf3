"""Which selected tests still need which environments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from pytest_ephemeral.broker.entries import Entry


class Needs:
    """The entries that each unfinished test needs. Call it with the broker's lock held."""

    def __init__(self) -> None:
        self._entries: defaultdict[str, list[Entry]] = defaultdict(list)
        self._finished: set[str] = set()

    def add(self, tests: Iterable[str], entry: Entry) -> None:
        """Record that tests need an environment. Tests that have finished are skipped."""
        for test in tests:
            if test not in self._finished and test not in entry.tests:
                entry.tests.add(test)
                self._entries[test].append(entry)

    def of(self, test: str) -> Sequence[Entry]:
        """The environments that a test needs."""
        return self._entries.get(test, ())

    def finish(self, test: str) -> Sequence[Entry]:
        """Record that a test has finished; returns the environments that it needed."""
        self._finished.add(test)
        entries = self._entries.pop(test, [])
        for entry in entries:
            entry.tests.discard(test)
        return entries

    def move(self, old: Entry, new: Entry) -> None:
        """Let the tests that need ``old`` need ``new`` instead."""
        new.tests, old.tests = old.tests, set()
        for test in new.tests:
            self._entries[test] = [new if one is old else one for one in self._entries[test]]
