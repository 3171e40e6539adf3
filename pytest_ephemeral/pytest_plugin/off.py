"""The last lines of a run without ``--ephemeral-env``."""

from __future__ import annotations

import pytest

from pytest_ephemeral.pytest_plugin.fixtures import OFF
from pytest_ephemeral.pytest_plugin.options import OPTIONS


def write(terminal: pytest.TerminalReporter) -> None:
    """Print how many tests were skipped without the option, and which options had no effect."""
    if skipped := sum(map(_needs_environment, terminal.stats.get("skipped", ()))):
        tests = "1 test was" if skipped == 1 else f"{skipped} tests were"
        text = f"ephemeral: {tests} skipped: {OFF}"
        terminal.write_line(text, yellow=True)
    if idle := find_idle_options(terminal.config):
        verb = "has" if len(idle) == 1 else "have"
        text = f"ephemeral: {', '.join(idle)} {verb} no effect without --ephemeral-env"
        terminal.write_line(text, yellow=True)


def find_idle_options(config: pytest.Config) -> list[str]:
    """The options that were typed; those in pytest's configuration file are for other runs, too."""
    typed = [str(word).partition("=")[0] for word in config.invocation_params.args]
    return [f"--{option.name}" for option in OPTIONS if f"--{option.name}" in typed]


def _needs_environment(report: object) -> bool:
    reason = getattr(report, "longrepr", None)
    return isinstance(reason, tuple) and reason[-1] == f"Skipped: {OFF}"
