"""What people see while environments come up.

Progress is told by background threads and written by one that may write: the main thread while
a test waits or between two tests, or under pytest-xdist, where no output is captured, a thread
of its own. On a terminal a line moves while a test waits; in a CI log every phase that takes
noticeable time is a line.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import pytest

from pytest_ephemeral.environments.progress import Progress

#: Seconds after which a phase is worth a line of its own.
NOTICEABLE: Final = 0.5

#: Seconds between two looks for something to write, where a thread does it.
TICK: Final = 0.1

#: What a phase is called while it goes on.
WORDS: Final = {
    "bake": "looking for its image",
    "launch": "launching",
    "ready": "waiting until it is ready",
    "seed": "seeding",
    "destroy": "destroying",
}


class Phase(msgspec.Struct):
    """Something that goes on now in one thread, and whether that has been said."""

    text: str
    since: float
    said: bool = False


class Reporter:
    """Writes progress to pytest's terminal; where there is none, it is silent."""

    def __init__(self, config: pytest.Config) -> None:
        self.warnings: list[str] = []
        self._terminal: Any = config.pluginmanager.getplugin("terminalreporter")
        self._capture: Any = config.pluginmanager.getplugin("capturemanager")
        self._verbosity = config.get_verbosity()
        self._told: deque[Progress | str] = deque()
        self._phases: dict[int, Phase] = {}
        self._routine: set[int] = set()
        self._moving = False
        self._writing = threading.Lock()
        self._stopped = threading.Event()

    def say(self, progress: Progress) -> None:
        """Take note of progress, in the thread that makes it."""
        if progress.phase == "seen":
            return
        thread = threading.get_ident()
        if self._verbosity > 0 or progress.phase != "up" or thread not in self._routine:
            self._told.append(progress)
        if progress.phase not in WORDS:
            self._phases.pop(thread, None)
        elif not progress.text:
            text = f"{progress.subject}: {WORDS[progress.phase]}"
            self._phases[thread] = Phase(text, time.monotonic())

    def print(self, text: str) -> None:
        """Have lines written as they are, however quiet this run is: a CI reads them."""
        self._told.append(text)

    def warn(self, text: str) -> None:
        """Have a warning written now and at the end."""
        self._told.append(Progress("", "warning", text))

    @contextmanager
    def following(self, *, routine: bool) -> Iterator[None]:
        """Bring something up, in this thread.

        Args:
            routine: One of so many that its URL is told with ``-v`` only.
        """
        thread = threading.get_ident()
        if routine:
            self._routine.add(thread)
        try:
            yield
        finally:
            self._routine.discard(thread)
            self._phases.pop(thread, None)

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
        """Write what there is to say."""
        with self._writing:
            lines = self._lines()
            if lines and self._terminal is not None:
                with self._visible():
                    self._erase()
                    self._begin_line()
                    for line, markup in lines:
                        self._terminal.write_line(line, **markup)

    def wait(self) -> None:
        """Write what there is to say; a test is waiting meanwhile."""
        self.flush()
        if self._terminal is None or self._verbosity < 0 or not self._terminal.isatty:
            return
        now = time.monotonic()
        going_on = [
            f"{phase.text}, {now - phase.since:.0f} s"
            for phase in list(self._phases.values())
            if now - phase.since >= NOTICEABLE
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
            progress = self._told.popleft()
            if isinstance(progress, str):
                verbatim += [(line, {}) for line in progress.splitlines()]
                continue
            lines += [
                (f"ephemeral: {text}", {"yellow": True} if progress.phase == "warning" else {})
                for text in self._texts(progress)
            ]
        for phase in list(self._phases.values()):
            if not phase.said and time.monotonic() - phase.since >= NOTICEABLE and self._in_a_log():
                phase.said = True
                lines.append((f"ephemeral: {phase.text}", {}))
        return verbatim + (lines if self._verbosity >= 0 else [line for line in lines if line[1]])

    def _in_a_log(self) -> bool:
        return self._terminal is not None and not self._terminal.isatty

    def _texts(self, progress: Progress) -> list[str]:
        """What one piece of progress is to people."""
        subject, phase, text = progress.subject, progress.phase, progress.text
        if phase == "warning":
            self.warnings.append(text)
            return [text]
        if phase == "bake" and text:
            return [f"{subject} | {text}" if progress.live else text]
        if phase == "up":
            return [f"{subject} is up{' at ' if text else ''}{text} ({progress.seconds:.2f} s)"]
        if phase == "destroyed" and self._verbosity > 0:
            return [f"{subject}: destroyed ({progress.seconds:.2f} s)"]
        return []
