"""The line above the tests, and the section below them."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Final

import pytest

from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.protocol import HOURLY
from pytest_ephemeral.pytest_plugin.entries import Entry
from pytest_ephemeral.pytest_plugin.evidence import destroy
from pytest_ephemeral.pytest_plugin.run import Run, leaked, unnoticed

TITLE: Final = "ephemeral environments"

#: More than this many that simply came and went are counted, not listed (``-v`` lists them).
LISTED: Final = 12

PHASES: Final = ("bake", "launch", "ready", "seed", "destroy")


def header(run: Run, config: pytest.Config) -> str:
    """The line that says what is on."""
    settings = run.settings
    parts = []
    if run.project is not None:
        path = run.project.config.path
        inside = path.is_relative_to(config.rootpath)
        parts.append(str(path.relative_to(config.rootpath) if inside else path))
    if settings.attach is not None:
        parts.append(f"attached to {settings.attach}")
    else:
        names = run.default or f"templates {', '.join(run.templates)}, none the default"
        parts += [f"template {names}" if run.default else names, f"bake {settings.bake}"]
    if settings.keep != "never":
        parts.append(f"keep {settings.keep}")
    return "ephemeral: " + ", ".join(parts)


def write(terminal: pytest.TerminalReporter, run: Run) -> None:
    """The closing section: every environment's image, times and fate.

    With ``-q``, only what someone has to see to.
    """
    quiet = terminal.config.get_verbosity() < 0
    routine = [entry for entry in run.entries if _is_routine(entry)]
    many = len(routine) > LISTED and terminal.config.get_verbosity() <= 0
    shown = [entry for entry in run.entries if not (quiet or many) or not _is_routine(entry)]
    counted = routine if many and not quiet else []
    if not (shown or counted or run.complaints or run.reporter.warnings):
        return
    terminal.section(TITLE)
    for entry in shown:
        _write_entry(terminal, run, entry)
    for template, number in Counter(entry.key.template for entry in counted).items():
        terminal.write_line(f"{template}: {number} environments, all ended (-v lists them)")
    if spent := _spent(run, datetime.now(UTC)):
        terminal.write_line(
            f"these have cost ${max(spent, 0.01):.2f} at most, by the table of prices"
        )
    for warning in run.reporter.warnings:
        terminal.write_line(warning, yellow=True)
    for complaint in run.complaints:
        terminal.write_line(complaint, red=True)


def _spent(run: Run, until: datetime) -> float:
    """What the environments that have a price have cost up to now, in dollars."""
    brought_up = [entry.environment for entry in run.entries if entry.environment is not None]
    return sum(
        float(one.handle[HOURLY]) * (until - one.created_at).total_seconds() / 3600
        for one in brought_up
        if HOURLY in one.handle
    )


def _is_routine(entry: Entry) -> bool:
    """Whether it came up, and was destroyed, and that is all there is to say."""
    destroyed = entry.fate is not None and entry.fate.word in {"destroyed", "destroying"}
    return entry.environment is not None and destroyed and not entry.problem


def _write_entry(terminal: pytest.TerminalReporter, run: Run, entry: Entry) -> None:
    environment = entry.environment
    if environment is None:
        problem = entry.problem.splitlines()[0] if entry.problem else "it was still coming up"
        terminal.write_line(f"{entry.key.template}: not brought up: {problem}", red=True)
        return
    word = "still up" if entry.fate is None else entry.fate.word
    said = "being destroyed by its watchdog" if word == "destroying" else word
    bad = leaked(entry) or run.crashed(entry)
    parts = [environment.id, _of(environment), _times(entry), said]
    terminal.write_line("  ".join(part for part in parts if part), red=bad)
    if entry.problem:
        lines = entry.problem.splitlines()
        for line in lines if unnoticed(entry) else lines[:1]:
            terminal.write_line(f"  {line}", red=bad)
    if word == "kept":
        terminal.write_line(f"  reach it:   {environment.url}")
        terminal.write_line(f"  destroy it: {destroy(environment.id, run.settings)}")
        if environment.expires_at is not None:
            terminal.write_line(f"  it expires at {environment.expires_at:%Y-%m-%d %H:%M} UTC")
    if leaked(entry) and entry.fate is not None:
        for line in (*entry.fate.detail.splitlines(), "try again: pytest-ephemeral reap"):
            terminal.write_line(f"  {line}", red=True)


def _of(environment: Environment) -> str:
    """Its template and image."""
    if environment.image is None:
        return f"({environment.template})"
    key = environment.image.key.rpartition(":")[2][:12]
    return f"({environment.template}, image {environment.image.name} {key})"


def _times(entry: Entry) -> str:
    return ", ".join(
        f"{name} {entry.seconds[name]:.2f} s" for name in PHASES if name in entry.seconds
    )
