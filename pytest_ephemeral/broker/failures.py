"""Templates whose first launch failed: they are not launched again, and reported in full once."""

from __future__ import annotations

import traceback

from pytest_ephemeral.broker.entries import Entry
from pytest_ephemeral.errors import BEFORE_LOG, NO_THREADS, EphemeralError, LaunchError


class Failures:
    """Which templates have come up, and which have failed. Call it with the broker's lock held."""

    def __init__(self) -> None:
        self._first: dict[str, Entry] = {}
        self._proven: set[str] = set()

    def prove(self, template: str) -> None:
        """Record that a template has come up. From now on, a failure does not stop its launches."""
        self._proven.add(template)

    def add(self, entry: Entry) -> None:
        """Record a failed launch. Stops the launches of its template, if that never came up."""
        if entry.key.template not in self._proven:
            self._first.setdefault(entry.key.template, entry)

    def copy_to(self, entry: Entry) -> bool:
        """Copy the first failure of its template to an environment.

        Returns:
            False if the template has no failure, or has come up.
        """
        first = self._first.get(entry.key.template)
        if first is not None:
            entry.state, entry.problem, entry.error = "failed", first.problem, first.error
        return first is not None

    def describe(self, entry: Entry) -> str:
        """The text of a problem: in full the first time, in one line from then on."""
        source = entry
        if entry.environment is None:
            source = self._first.get(entry.key.template, entry)
        if not source.reported:
            source.reported = entry.reported = True
            return entry.problem
        first = entry.problem.splitlines()[0].removesuffix(BEFORE_LOG).rstrip()
        return f"{first} (details at the first failure)"


def explain(error: BaseException) -> tuple[str, type[EphemeralError]]:
    """The text and the class of an error of a launch or a request.

    Call it in the ``except`` clause: the text of an unexpected error includes the traceback.
    """
    if isinstance(error, EphemeralError):
        return "\n".join([str(error), *getattr(error, "__notes__", ())]), type(error)
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return NO_THREADS, LaunchError
    return f"internal error of pytest-ephemeral\n{traceback.format_exc()}", LaunchError
