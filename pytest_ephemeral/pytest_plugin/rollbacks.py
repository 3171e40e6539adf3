"""Decide when the environments of tests are rolled back to their baseline.

Environments that are rolled back are not shared between the processes that run tests. So each
process can decide for its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

import pytest

from pytest_ephemeral.broker.protocol import Key
from pytest_ephemeral.pytest_plugin import markers


class Rollbacks:
    """The environments that are rolled back, and those for which a rollback is due.

    Args:
        worker: The name of this xdist worker; empty without xdist.
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
        """Find the templates whose environments are rolled back.

        Args:
            items: The selected tests.
            keys: Returns the environments that a test needs.
            by_template: The ``rollback`` of each template, by its name.
        """
        self._by_template = by_template
        self._templates = set(by_template)
        for item in items:
            for key in keys(item):
                if self._when(item, key):
                    self._templates.add(key.template)

    def mark(self, key: Key) -> Key:
        """The key of an environment; if it is rolled back, one of this process alone.

        An environment for a single test is always new, so it is not rolled back.
        """
        if key.template not in self._templates or key.scope == "function":
            return key
        instance = f"{key.instance}@{self._worker}" if self._worker else key.instance
        return key._replace(instance=instance, rollback=True)

    def is_due(self, item: pytest.Item, key: Key) -> bool:
        """Whether an environment must be rolled back before a test uses it."""
        if not key.rollback or key not in self._used:
            return False
        return key in self._due or self._when(item, key) == "each"

    def put_back(self, key: Key) -> None:
        """Note that an environment was rolled back."""
        self._used.discard(key)
        self._due.discard(key)

    def finish(self, item: pytest.Item, keys: Iterable[Key], *, failed: bool) -> None:
        """Note that a test has used some environments.

        An environment that was rolled back before the test is rolled back after it, too, as other
        tests do not expect its changes.
        """
        for key in keys:
            self._used.add(key)
            when = self._when(item, key)
            if when == "each" or (failed and when == "failed"):
                self._due.add(key)

    def _when(self, item: pytest.Item, key: Key) -> str | None:
        """The ``rollback`` of a test's marker for an environment, or of its template."""
        marker = markers.nearest(item)
        with suppress(markers.MarkerError):
            when = markers.rollback(marker)
            names = () if marker is None else markers.templates(marker)
            if when and (not names or key.template in names):
                return when
        return self._by_template.get(key.template)
