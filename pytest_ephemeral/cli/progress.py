"""Progress on stderr: on a terminal one line that is updated, elsewhere one line a phase."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from pytest_ephemeral.cli import output
from pytest_ephemeral.environments.progress import Progress
from pytest_ephemeral.text import printable

_WORDS: Final = {
    "bake": "preparing its image",
    "launch": "launching",
    "ready": "waiting until it is ready",
    "seen": "not ready yet:",
    "seed": "seeding",
    "baseline": "taking its baseline",
    "rollback": "putting it back to its baseline",
    "up": "up",
    "destroy": "destroying",
    "destroyed": "destroyed",
    "kept": "kept",
    "warning": "warning:",
}

#: Phases whose line stays on the terminal; all others appear only in the updated line.
_LASTING: Final = frozenset({"up", "destroyed", "kept", "warning"})


@contextmanager
def show() -> Iterator[Callable[[Progress], None]]:
    """Show progress on stderr while the block runs; yields the function that reports a step."""
    if output.is_terminal(sys.stderr):
        with _animate() as say:
            yield say
    else:
        yield log


def log(progress: Progress) -> None:
    """Print one step as a line on stderr."""
    # Results of probes change too often to print each; one with a hint is printed.
    if progress.phase != "seen" or "hint: " in progress.text:
        print(_sentence(progress), file=sys.stderr, flush=True)


@contextmanager
def _animate() -> Iterator[Callable[[Progress], None]]:
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
        return f"  {printable(progress.text)}"
    # The text of these phases describes the step, so no words are added.
    has_own = progress.phase in {"bake", "launch"} and progress.text
    words = [f"{progress.subject}:", "" if has_own else _WORDS[progress.phase], progress.text]
    if timed and progress.seconds >= 0.005:
        words.append(f"({progress.seconds:.2f} s)")
    return printable(" ".join(word for word in words if word))
