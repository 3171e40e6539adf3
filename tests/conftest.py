"""Hooks for all tests: marks, groups for workers, and lines about deselected and skipped tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from support import lacks, tiers
from support.plugin_project import without_plugins

#: Runs pytest inside pytest; it can only be enabled here, in the top-level conftest.py.
pytest_plugins = ["pytester"]

HERE = Path(__file__).parent

#: The number of deselected tests, by mark.
LEFT_OUT = pytest.StashKey[dict[str, int]]()


def pytest_configure(config: pytest.Config) -> None:
    """Handle SIGINT, SIGQUIT and SIGHUP if this process was started with them ignored.

    A background job ignores the first two, and nohup the third. A child process inherits ignored
    signals, and tests that send them would wait for ever. If this process handles a signal, its
    children get the default handling.
    """
    config.stash[LEFT_OUT] = {}
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    if hasattr(config, "workerinput") or config.getoption("dist", "no") == "no":
        # For each pytest that a test starts: other plugins took half of its time.
        os.environ["PYTEST_ADDOPTS"] = without_plugins()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None]:
    """Mark the tests before they are selected; start long tests first."""
    for item in items:
        bench = item.callspec.params.get("bench", "") if hasattr(item, "callspec") else ""
        for mark in tiers.marks_of(item.path.relative_to(HERE).as_posix(), bench):
            item.add_marker(mark)
            if mark == "vm":  # an emulated boot takes a minute on a busy machine
                item.add_marker(pytest.mark.timeout(900))
    yield
    items.sort(key=tiers.rank)


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count the tests that ``-m`` deselects."""
    for item in items:
        if marks := [mark for mark in tiers.MARKS if item.get_closest_marker(mark)]:
            counts = item.config.stash[LEFT_OUT]
            counts[marks[0]] = counts.get(marks[0], 0) + 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the counts to xdist's controller, which does not select tests itself."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash[LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Store the counts of one worker; all workers have the same counts."""
    if counts := getattr(node, "workeroutput", {}).get("left_out"):
        node.config.stash[LEFT_OUT] = counts


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadgroup``, run tests that share something expensive on one worker."""
    return tiers.GroupScheduling(config, log) if config.option.dist == "loadgroup" else None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print two lines: the deselected tests, and what this machine lacks."""
    if left_out := config.stash[LEFT_OUT]:
        counts = ", ".join(f"{mark} ({count})" for mark, count in sorted(left_out.items()))
        terminalreporter.write_line(f"left out: {counts}. All tests: make test-all")
    skipped = terminalreporter.getreports("skipped")
    if missing := lacks.missing(report.longrepr[2] for report in skipped):
        terminalreporter.write_line(f"left out for lack of: {missing}. CI installs it: .ci/run")
