"""Show progress in pytest's terminal while environments come up.

A thread receives progress from the owner process. It is written by the main thread, while a test
waits or between two tests; under pytest-xdist, where no output is captured, by another thread. On a
terminal, one line is updated while a test waits. In a CI log, each long phase is a line.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from pytest_ephemeral.broker.protocol import ProgressEvent

#: Seconds after which a phase is shown.
NOTICEABLE: Final = 0.5

#: Seconds between writes, if a thread writes.
TICK: Final = 0.1

#: The number of environments that are listed; further ones are listed only with ``-v``.
LISTED: Final = 12

#: The text for each phase.
WORDS: Final = {
    "bake": "looking for its image",
    "launch": "launching",
    "ready": "waiting until it is ready",
    "seed": "seeding",
    "baseline": "taking its baseline",
    "rollback": "putting it back to its baseline",
    "destroy": "destroying",
}


class Activity:
    """A running phase, and whether it was shown."""

    def __init__(self, text: str, since: float) -> None:
        self.text = text
        self.since = since
        self.shown = False


class Reporter:
    """Writes progress to pytest's terminal, if there is one.

    Attributes:
        warnings: The warnings, which are repeated at the end.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.warnings: list[str] = []
        # Kept here, as tests may replace the function.
        self._now = time.monotonic
        self._terminal: Any = config.pluginmanager.getplugin("terminalreporter")
        self._capture: Any = config.pluginmanager.getplugin("capturemanager")
        self._verbosity = config.get_verbosity()
        self._queue: deque[ProgressEvent | str] = deque()
        self._activities: dict[int, Activity] = {}
        self._listed = 0
        self._moving = False
        self._writing = threading.Lock()
        self._stopped = threading.Event()

    def on_progress(self, event: ProgressEvent) -> None:
        """Record progress; called from the thread that receives it."""
        if event.phase == "seen":
            return
        if self._verbosity > 0 or not event.routine or event.phase not in {"up", *WORDS}:
            self._queue.append(event)
        if event.phase not in WORDS:
            self._activities.pop(event.task, None)
        elif not event.text:
            text = f"{event.subject}: {WORDS[event.phase]}"
            activity = Activity(text, self._now())
            activity.shown = event.routine and self._verbosity <= 0
            self._activities[event.task] = activity

    def print(self, text: str) -> None:
        """Write lines unchanged, even with ``-q``, as a CI server reads them."""
        self._queue.append(text)

    def warn(self, text: str) -> None:
        """Write a warning, now and at the end."""
        self._queue.append(ProgressEvent("", "warning", text))

    def start_thread(self) -> Callable[[], None]:
        """Start to write from a thread, as this process runs no tests and captures no output.

        Returns:
            A function that ends the thread.
        """
        thread = threading.Thread(target=self._write_always, name="ephemeral output", daemon=True)
        thread.start()

        def stop() -> None:
            self._stopped.set()
            thread.join()

        return stop

    def flush(self) -> None:
        """Write new progress."""
        with self._writing:
            lines = self._lines()
            if lines and self._terminal is not None:
                with self._visible():
                    self._erase()
                    self._begin_line()
                    for line, markup in lines:
                        self._terminal.write_line(line, **markup)

    def wait(self) -> None:
        """Write new progress, and update the line for the waiting test."""
        self.flush()
        if self._terminal is None or self._verbosity < 0 or not self._terminal.isatty:
            return
        now = self._now()
        going_on = [
            f"{activity.text}, {now - activity.since:.0f} s"
            for activity in list(self._activities.values())
            if now - activity.since >= NOTICEABLE
        ]
        if going_on:
            with self._visible():
                if not self._moving:
                    self._terminal.ensure_newline()
                text = "ephemeral: " + "; ".join(going_on)
                self._terminal.rewrite(text[: self._terminal._tw.fullwidth - 1], erase=True)  # noqa: SLF001
                self._moving = True

    def settle(self) -> None:
        """Remove the line for the waiting test."""
        self.flush()
        if self._moving:
            with self._visible():
                self._erase()

    def _write_always(self) -> None:
        while not self._stopped.wait(TICK):
            self.flush()

    @contextmanager
    def _visible(self) -> Iterator[None]:
        """Suspend pytest's capturing of output."""
        if self._capture is None:
            yield
        else:
            with self._capture.global_and_fixture_disabled():
                yield

    def _begin_line(self) -> None:
        """End a line of dots: CI servers only read commands at the start of a line."""
        self._terminal.ensure_newline()
        if self._terminal._tw.width_of_current_line:  # noqa: SLF001
            self._terminal.line("")

    def _erase(self) -> None:
        if self._moving:
            self._terminal.rewrite("", erase=True)
            self._terminal.rewrite("")
            self._moving = False

    def _lines(self) -> list[tuple[str, dict[str, bool]]]:
        """New progress, as lines with their markup."""
        lines: list[tuple[str, dict[str, bool]]] = []
        verbatim: list[tuple[str, dict[str, bool]]] = []
        while self._queue:
            event = self._queue.popleft()
            if isinstance(event, str):
                verbatim += [(line, {}) for line in event.splitlines()]
                continue
            lines += [
                (f"ephemeral: {text}", {"yellow": True} if event.phase == "warning" else {})
                for text in self._texts(event)
            ]
        for activity in list(self._activities.values()):
            noticeable = self._now() - activity.since >= NOTICEABLE
            if not activity.shown and noticeable and self._is_log():
                activity.shown = True
                lines.append((f"ephemeral: {activity.text}", {}))
        return verbatim + (lines if self._verbosity >= 0 else [line for line in lines if line[1]])

    def _is_log(self) -> bool:
        return self._terminal is not None and not self._terminal.isatty

    def _texts(self, event: ProgressEvent) -> list[str]:
        """Format one event for people."""
        subject, phase, text = event.subject, event.phase, event.text
        if phase == "warning":
            self.warnings.append(text)
            return [text]
        if phase == "bake" and text:
            return [f"{subject} | {text}" if event.live else text]
        if phase == "launch" and text:
            return [f"{subject}: {text}"]
        if phase == "up":
            return self._list(
                f"{subject} is up{' at ' if text else ''}{text} ({event.seconds:.2f} s)"
            )
        if phase == "destroyed" and self._verbosity > 0:
            return [f"{subject}: destroyed ({event.seconds:.2f} s)"]
        return []

    def _list(self, text: str) -> list[str]:
        """A line for an environment; after the first ones, one line that there are more."""
        self._listed += 1
        if self._verbosity > 0 or self._listed <= LISTED:
            return [text]
        return ["more environments come up (-v lists them)"] if self._listed == LISTED + 1 else []
