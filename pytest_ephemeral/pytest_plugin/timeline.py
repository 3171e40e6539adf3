"""A run as a timeline: its tests and environments, and what took how long."""

from __future__ import annotations

from typing import Final, NamedTuple

#: The phases of an environment's life that take time, in their order.
PHASES: Final = ("bake", "launch", "ready", "seed", "baseline", "up", "rollback", "destroy")

#: Seconds that a test has to have waited for it to be shown.
NOTICEABLE: Final = 0.01


class Span(NamedTuple):
    """Something that took time.

    Attributes:
        kind: One of ``PHASES``; or a test's outcome.
        start: In seconds since the epoch, as ``stop`` is.
    """

    kind: str
    start: float
    stop: float


class Wait(NamedTuple):
    """That a test waited for an environment to come up; ``subject`` is its id, or its template."""

    subject: str
    start: float
    stop: float


class TestRow(NamedTuple):
    """One test, in the process that ran it."""

    worker: str
    name: str
    span: Span
    waits: tuple[Wait, ...]


class EnvironmentRow(NamedTuple):
    """One environment, from when its image was looked for to its end."""

    id: str
    template: str
    spans: tuple[Span, ...]


class Timeline(NamedTuple):
    """A run, to be drawn."""

    tests: tuple[TestRow, ...]
    environments: tuple[EnvironmentRow, ...]
