"""Telling whoever waits what is going on: a line that moves, or one line a phase."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from pytest_ephemeral.cli import output
from pytest_ephemeral.environments.progress import Progress

_WORDS: Final = {
    "bake": "obtaining its image",
    "launch": "launching",
    "ready": "waiting until it answers",
    "seen": "waiting until it answers:",
    "seed": "seeding",
    "up": "up",
    "destroy": "destroying",
    "destroyed": "destroyed",
    "kept": "kept",
    "warning": "warning:",
}

#: What is said even when the line that moves is gone again.
_LASTING: Final = frozenset({"up", "destroyed", "kept", "warning"})


@contextmanager
def shown() -> Iterator[Callable[[Progress], None]]:
    """Show progress on stderr for as long as the block runs; gives what to tell it to."""
    if output.moves(sys.stderr):
        with _moving() as say:
            yield say
    else:
        yield _log


def _log(progress: Progress) -> None:
    if progress.phase != "seen":  # it is for a line that moves
        print(_sentence(progress), file=sys.stderr, flush=True)


@contextmanager
def _moving() -> Iterator[Callable[[Progress], None]]:
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    console = output.console(sys.stderr)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def say(progress: Progress) -> None:
            if progress.live:
                console.print(_sentence(progress), style="dim")
            elif progress.phase in _LASTING:
                console.print(_sentence(progress))
            else:
                bar.update(task, description=_sentence(progress, timed=False))

        yield say


def _sentence(progress: Progress, *, timed: bool = True) -> str:
    if progress.live:
        return f"  {progress.text}"
    baking = progress.phase == "bake" and progress.text  # it says itself what it is doing
    words = [f"{progress.subject}:", "" if baking else _WORDS[progress.phase], progress.text]
    if timed and progress.seconds >= 0.005:
        words.append(f"({progress.seconds:.2f} s)")
    return " ".join(word for word in words if word)
