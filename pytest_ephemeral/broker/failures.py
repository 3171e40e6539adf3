"""Templates that never came up: they are not tried again, and reported in full once."""

from __future__ import annotations

import traceback

from pytest_ephemeral.broker.entries import Entry
from pytest_ephemeral.errors import NO_THREADS, EphemeralError, LaunchError


class Failures:
    """Remembers which templates have worked, and which have not. Called with the broker's lock."""

    def __init__(self) -> None:
        self._first: dict[str, Entry] = {}
        self._proven: set[str] = set()

    def prove(self, template: str) -> None:
        """An environment of that template was up: a later failure says nothing of the next one."""
        self._proven.add(template)

    def add(self, entry: Entry) -> None:
        """An environment did not come up. If none of its template ever did, none will."""
        if entry.key.template not in self._proven:
            self._first.setdefault(entry.key.template, entry)

    def copy_to(self, entry: Entry) -> bool:
        """Let an environment fail as the first one of its template did; False if none did."""
        first = self._first.get(entry.key.template)
        if first is not None:
            entry.state, entry.problem, entry.error = "failed", first.problem, first.error
        return first is not None

    def tell(self, entry: Entry) -> str:
        """Describe a problem: in full the first time, in one line from then on."""
        source = entry
        if entry.environment is None:
            source = self._first.get(entry.key.template, entry)
        if not source.told:
            source.told = entry.told = True
            return entry.problem
        return f"{entry.problem.splitlines()[0]} (details at the first failure)"


def explain(error: BaseException) -> tuple[str, type[EphemeralError]]:
    """Describe an error that kept something from being done; also returns its kind.

    Called while it is handled.
    """
    if isinstance(error, EphemeralError):
        return "\n".join([str(error), *getattr(error, "__notes__", ())]), type(error)
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return NO_THREADS, LaunchError
    return f"internal error of pytest-ephemeral\n{traceback.format_exc()}", LaunchError
