"""The header line before the tests, and the summary after them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import pytest

from pytest_ephemeral import urls
from pytest_ephemeral.broker.protocol import Finished, Opened, Settings, Summary
from pytest_ephemeral.pytest_plugin.reports import destroy

TITLE: Final = "ephemeral environments"

#: More environments without problems are counted, and listed only with ``-v``.
LISTED: Final = 12

PHASES: Final = ("bake", "launch", "ready", "seed", "baseline", "rollback", "destroy")


#: The texts for states, for people.
WORDS: Final = {
    "destroying": "cleanup continues in the background",
    "ready": "still up",
    "standby": "its machine is renewed, and kept on standby for the next",
}


def header(opened: Opened, settings: Settings, config: pytest.Config) -> str:
    """The header line: configuration, template and main settings."""
    parts = []
    if opened.config is not None:
        path = opened.config
        inside = path.is_relative_to(config.rootpath)
        parts.append(str(path.relative_to(config.rootpath) if inside else path))
    if settings.attach is not None:
        parts.append(f"attached to {urls.hide_password(settings.attach)}")
    else:
        names = opened.default or f"templates {', '.join(opened.templates)}, no default"
        parts += [f"template {names}" if opened.default else names, f"bake {settings.bake}"]
    if settings.keep != "never":
        parts.append(f"keep {settings.keep}")
    return "ephemeral: " + ", ".join(parts)


def write(
    terminal: pytest.TerminalReporter,
    finished: Finished,
    settings: Settings,
    warnings: Sequence[str],
) -> None:
    """Write the summary: the image, times and state of every environment.

    With ``-q``, only environments with problems, and warnings.
    """
    quiet = terminal.config.get_verbosity() < 0
    routine = [one for one in finished.environments if _is_routine(one)]
    many = len(routine) > LISTED and terminal.config.get_verbosity() <= 0
    shown = [one for one in finished.environments if not (quiet or many) or not _is_routine(one)]
    counted = routine if many and not quiet else []
    if not (shown or counted or finished.complaints or warnings):
        return
    terminal.ensure_newline()
    terminal.section(TITLE)
    for one in shown:
        _write_one(terminal, one, settings)
    for template, number in Counter(one.template for one in counted).items():
        terminal.write_line(f"{template}: {number} environments, all ended (-v lists them)")
    costs = [one.cost for one in finished.environments if one.cost is not None]
    if costs:
        spent = max(sum(costs), 0.01)
        terminal.write_line(f"these cost at most ${spent:.2f}, by the table of prices")
    for warning in warnings:
        terminal.write_line(warning, yellow=True)
    for complaint in finished.complaints:
        terminal.write_line(complaint, red=True)


def _is_routine(one: Summary) -> bool:
    """Whether an environment came up and was destroyed, without problems."""
    return bool(one.id) and one.state in {"destroyed", "destroying", "standby"} and not one.problem


def _write_one(terminal: pytest.TerminalReporter, one: Summary, settings: Settings) -> None:
    if not one.id:
        problem = one.problem.splitlines()[0]
        terminal.write_line(f"{one.template}: not brought up: {problem}", red=True)
        return
    bad = one.state == "leaked" or one.crashed
    parts = [one.id, _of(one), _times(one), WORDS.get(one.state, one.state)]
    terminal.write_line("  ".join(part for part in parts if part), red=bad)
    if one.problem:
        lines = one.problem.splitlines()
        for line in lines if one.unnoticed else lines[:1]:
            terminal.write_line(f"  {line}", red=bad)
    if one.state == "kept":
        terminal.write_line(f"  reach it:   {urls.hide_password(one.url)}")
        terminal.write_line(f"  destroy it: {destroy(one.id, settings)}")
        if one.expires:
            terminal.write_line(f"  it expires at {one.expires}")
    if one.state == "leaked":
        for line in (*one.detail.splitlines(), "try again: pytest-ephemeral reap"):
            terminal.write_line(f"  {line}", red=True)


def _of(one: Summary) -> str:
    """Its template and image."""
    name, key = one.image
    return (
        f"({one.template}, image {name} {key.rpartition(':')[2][:12]})"
        if name
        else (f"({one.template})")
    )


def _times(one: Summary) -> str:
    return ", ".join(f"{name} {one.seconds[name]:.2f} s" for name in PHASES if name in one.seconds)
