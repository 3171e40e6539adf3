"""``--ephemeral-timeline``: what happened when in a run, as the controller hears it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from pytest_ephemeral.broker.protocol import ProgressEvent
from pytest_ephemeral.pytest_plugin.worker import WAITS_ATTRIBUTE

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


class TimelineRecorder:
    """Takes note of what happens.

    Attributes:
        file: Where the picture of it is to be drawn.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._now = time.time  # kept here, where no test replaces it
        self._bakes: dict[int, tuple[str, float]] = {}
        self._moments: dict[str, list[tuple[str, float]]] = {}
        self._templates: dict[str, str] = {}
        self._tests: dict[tuple[str, str], TestRow] = {}

    def on_progress(self, event: ProgressEvent) -> None:
        """Take note of a phase that begins, or ends; called from the thread that hears it."""
        now = self._now()
        if event.phase in {"bake", "launch"} and event.text:
            return  # it tells of one that has begun
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
        """Take note of one phase of a test."""
        if not hasattr(report, "start"):
            return  # of a worker that has crashed
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
        """All that was heard until now, while more is heard; what still goes on ends now.

        To be lent what is up already takes no time to speak of: nobody waits for that.
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
    """What began when, each until the next thing began."""
    stops = [*(at for _, at in moments[1:]), end]
    return tuple(
        Span(phase, at, stop)
        for (phase, at), stop in zip(moments, stops, strict=True)
        if phase != "destroyed"
    )
