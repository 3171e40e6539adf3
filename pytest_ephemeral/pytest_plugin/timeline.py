"""``--ephemeral-timeline``: record the times of a run's tests and environments."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from pytest_ephemeral.broker.protocol import ProgressEvent
from pytest_ephemeral.pytest_plugin.worker import WAITS_ATTRIBUTE

#: The phases of an environment's life, in order.
PHASES: Final = ("bake", "launch", "ready", "seed", "baseline", "up", "rollback", "destroy")

#: Shorter waits, in seconds, are not shown.
NOTICEABLE: Final = 0.01


class Span(NamedTuple):
    """A span of time.

    Attributes:
        kind: One of ``PHASES``, or a test's outcome.
        start: The start, in seconds since the epoch.
        stop: The end, in seconds since the epoch.
    """

    kind: str
    start: float
    stop: float


class Wait(NamedTuple):
    """A test's wait for an environment; ``subject`` is the environment's id or template."""

    subject: str
    start: float
    stop: float


class TestRow(NamedTuple):
    """A test, with the process that ran it."""

    worker: str
    name: str
    span: Span
    waits: tuple[Wait, ...]


class EnvironmentRow(NamedTuple):
    """An environment, from the bake of its image to its end."""

    id: str
    template: str
    spans: tuple[Span, ...]


class Timeline(NamedTuple):
    """The times of a run."""

    tests: tuple[TestRow, ...]
    environments: tuple[EnvironmentRow, ...]


class TimelineRecorder:
    """Records the times of a run.

    Attributes:
        file: The file to draw the timeline to.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._now = time.time  # kept here, as tests may replace the function
        self._bakes: dict[int, tuple[str, float]] = {}
        self._moments: dict[str, list[tuple[str, float]]] = {}
        self._templates: dict[str, str] = {}
        self._tests: dict[tuple[str, str], TestRow] = {}

    def on_progress(self, event: ProgressEvent) -> None:
        """Record the start or end of a phase; called from the thread that receives it."""
        now = self._now()
        if event.phase in {"bake", "launch"} and event.text:
            return  # a message within the phase
        if event.phase == "bake":
            self._bakes[event.task] = (event.subject, now)
            return
        if event.phase == "launch" and event.task in self._bakes:
            template, since = self._bakes.pop(event.task)
            self._templates[event.subject] = template
            self._moments[event.subject] = [("bake", since)]
        if event.phase in {*PHASES, "restored", "destroyed"}:
            phase = "up" if event.phase == "restored" else event.phase
            self._moments.setdefault(event.subject, []).append((phase, now))

    def add(self, report: pytest.TestReport) -> None:
        """Record one phase of a test."""
        if not hasattr(report, "start"):
            return  # the worker has crashed
        node = getattr(report, "node", None)
        worker = "tests" if node is None else str(node.gateway.id)
        waits = tuple(Wait(*one) for one in getattr(report, WAITS_ATTRIBUTE, ()))
        known = self._tests.get((worker, report.nodeid))
        span, kind = Span(report.outcome, report.start, report.stop), report.outcome
        if known is not None and report.when != "setup":
            waits = known.waits + waits
            worse = known.span.kind if kind == "passed" else kind
            span = Span(worse, known.span.start, report.stop)
        self._tests[worker, report.nodeid] = TestRow(worker, report.nodeid, span, waits)

    def collect(self) -> Timeline:
        """The timeline so far; running phases end now. Events may arrive meanwhile.

        Waits for an environment that was already up are left out.
        """
        end = self._now()
        heard = {id: tuple(moments) for id, moments in self._moments.copy().items()}
        environments = tuple(
            EnvironmentRow(id, self._templates.get(id, id.rpartition("-")[0]), _spans(moments, end))
            for id, moments in heard.items()
        )
        up = {id: at for id, moments in heard.items() for kind, at in moments if kind == "up"}
        tests = (
            one._replace(waits=tuple(w for w in one.waits if w.start <= up.get(w.subject, end)))
            for one in self._tests.values()
        )
        return Timeline(tuple(tests), environments)


def _spans(moments: Sequence[tuple[str, float]], end: float) -> tuple[Span, ...]:
    """The spans of phases: each ends at the start of the next."""
    stops = [*(at for _, at in moments[1:]), end]
    return tuple(
        Span(phase, at, stop)
        for (phase, at), stop in zip(moments, stops, strict=True)
        if phase != "destroyed"
    )
