"""When the environments of tests are put back to their baseline, as this process sees it.

A process that runs tests has environments of its own where they are put back: nobody else uses
them, so all there is to know of them is known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

import pytest

from pytest_ephemeral.broker.protocol import Key
from pytest_ephemeral.pytest_plugin import markers


class Rollbacks:
    """Which environments are put back, and which of them are due.

    Args:
        worker: The name of this process among those that run tests; empty if it is the only one.
    """

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._by_template: Mapping[str, str] = {}
        self._templates: set[str] = set()
        self._used: set[Key] = set()
        self._due: set[Key] = set()

    def plan(
        self,
        items: Iterable[pytest.Item],
        keys: Callable[[pytest.Item], Sequence[Key]],
        by_template: Mapping[str, str],
    ) -> None:
        """Find out which environments are put back at all.

        Args:
            items: The selected tests.
            keys: Gives the environments that a test needs.
            by_template: What the templates say, by their names.
        """
        self._by_template = by_template
        self._templates = set(by_template)
        for item in items:
            for key in keys(item):
                if self._when(item, key):
                    self._templates.add(key.template)

    def mark(self, key: Key) -> Key:
        """The key of an environment; of one that is put back, this process's own.

        One that serves a single test is new in any case.
        """
        if key.template not in self._templates or key.scope == "function":
            return key
        instance = f"{key.instance}@{self._worker}" if self._worker else key.instance
        return key._replace(instance=instance, rollback=True)

    def is_due(self, item: pytest.Item, key: Key) -> bool:
        """Whether an environment has to be put back before a test has it."""
        if not key.rollback or key not in self._used:
            return False
        return key in self._due or self._when(item, key) == "each"

    def put_back(self, key: Key) -> None:
        """An environment is as it was."""
        self._used.discard(key)
        self._due.discard(key)

    def finish(self, item: pytest.Item, keys: Iterable[Key], *, failed: bool) -> None:
        """A test that used those environments is over.

        What was put back for it is put back behind it, too: other tests don't expect its traces.
        """
        for key in keys:
            self._used.add(key)
            when = self._when(item, key)
            if when == "each" or (failed and when == "failed"):
                self._due.add(key)

    def _when(self, item: pytest.Item, key: Key) -> str | None:
        """What a test's marker says of an environment, or else its template."""
        marker = markers.nearest(item)
        with suppress(markers.MarkerError):
            when = markers.rollback(marker)
            names = () if marker is None else markers.templates(marker)
            if when and (not names or key.template in names):
                return when
        return self._by_template.get(key.template)
