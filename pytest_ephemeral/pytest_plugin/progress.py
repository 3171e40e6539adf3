"""Progress in pytest's terminal while environments come up.

The owner process tells of it, a thread hears it, and it is written by a thread that may write: the
main one while a test waits or between two tests, or under pytest-xdist, where no output is
captured, a thread of its own. On a terminal a line moves while a test waits; in a CI log every
phase that takes noticeable time is a line.
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

#: Seconds after which a phase is worth a line of its own.
NOTICEABLE: Final = 0.5

#: Seconds between two looks for something to write, where a thread does it.
TICK: Final = 0.1

#: More URLs than this are told with ``-v`` only, where each test or module has its own.
LISTED: Final = 12

#: What a phase is called while it goes on.
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
    """Something that goes on now, and whether that has been said."""

    def __init__(self, text: str, since: float) -> None:
        self.text = text
        self.since = since
        self.said = False


class Reporter:
    """Writes progress to pytest's terminal; where there is none, it is silent.

    Attributes:
        warnings: What is to be said once more at the end.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.warnings: list[str] = []
        # Kept here, where no test replaces it.
        self._now = time.monotonic
        self._terminal: Any = config.pluginmanager.getplugin("terminalreporter")
        self._capture: Any = config.pluginmanager.getplugin("capturemanager")
        self._verbosity = config.get_verbosity()
        self._told: deque[ProgressEvent | str] = deque()
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
            self._told.append(event)
        if event.phase not in WORDS:
            self._activities.pop(event.task, None)
        elif not event.text:
            text = f"{event.subject}: {WORDS[event.phase]}"
            activity = Activity(text, self._now())
            activity.said = event.routine and self._verbosity <= 0
            self._activities[event.task] = activity

    def print(self, text: str) -> None:
        """Have lines written as they are, however quiet this run is: a CI reads them."""
        self._told.append(text)

    def warn(self, text: str) -> None:
        """Have a warning written now and at the end."""
        self._told.append(ProgressEvent("", "warning", text))

    def start_thread(self) -> Callable[[], None]:
        """Write from a thread: this process runs no tests, and captures nothing.

        Returns:
            What ends the thread.
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
        """Write new progress; a test is waiting meanwhile."""
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
        """The test waits no longer."""
        self.flush()
        if self._moving:
            with self._visible():
                self._erase()

    def _write_always(self) -> None:
        while not self._stopped.wait(TICK):
            self.flush()

    @contextmanager
    def _visible(self) -> Iterator[None]:
        """Past pytest's capturing of what tests print."""
        if self._capture is None:
            yield
        else:
            with self._capture.global_and_fixture_disabled():
                yield

    def _begin_line(self) -> None:
        """End a line of dots and percents: CIs read commands at a line's beginning only."""
        self._terminal.ensure_newline()
        if self._terminal._tw.width_of_current_line:  # noqa: SLF001
            self._terminal.line("")

    def _erase(self) -> None:
        if self._moving:
            self._terminal.rewrite("", erase=True)
            self._terminal.rewrite("")
            self._moving = False

    def _lines(self) -> list[tuple[str, dict[str, bool]]]:
        """All that is new, as lines and their markup."""
        lines: list[tuple[str, dict[str, bool]]] = []
        verbatim: list[tuple[str, dict[str, bool]]] = []
        while self._told:
            event = self._told.popleft()
            if isinstance(event, str):
                verbatim += [(line, {}) for line in event.splitlines()]
                continue
            lines += [
                (f"ephemeral: {text}", {"yellow": True} if event.phase == "warning" else {})
                for text in self._texts(event)
            ]
        for activity in list(self._activities.values()):
            noticeable = self._now() - activity.since >= NOTICEABLE
            if not activity.said and noticeable and self._in_a_log():
                activity.said = True
                lines.append((f"ephemeral: {activity.text}", {}))
        return verbatim + (lines if self._verbosity >= 0 else [line for line in lines if line[1]])

    def _in_a_log(self) -> bool:
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
        """A line of which there may be very many; after some, only that there are more."""
        self._listed += 1
        if self._verbosity > 0 or self._listed <= LISTED:
            return [text]
        return ["more environments come up (-v lists them)"] if self._listed == LISTED + 1 else []
