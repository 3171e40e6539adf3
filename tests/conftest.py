"""What holds for all tests: their marks, who runs them, and what is said of those left out."""

from __future__ import annotations

import signal
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from support import lacks, tiers

#: Runs pytest inside pytest; it can only be asked for here, at the top.
pytest_plugins = ["pytester"]

HERE = Path(__file__).parent

#: How many tests were deselected, by mark.
LEFT_OUT = pytest.StashKey[dict[str, int]]()


def pytest_configure(config: pytest.Config) -> None:
    """Have signals mean what they do in a terminal: a background job ignores two, nohup one.

    A process that starts with a signal ignored hands that on, and the tests that send it would
    wait for ever. One that handles it gives its children back the default.
    """
    config.stash[LEFT_OUT] = {}
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None]:
    """Mark the tests before they are selected; begin with what takes long."""
    for item in items:
        bench = item.callspec.params.get("bench", "") if hasattr(item, "callspec") else ""
        for mark in tiers.marks_of(item.path.relative_to(HERE).as_posix(), bench):
            item.add_marker(mark)
            if mark == "vm":  # an emulated machine takes a minute to boot where others run, too
                item.add_marker(pytest.mark.timeout(900))
    yield
    items.sort(key=tiers.rank)


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count what ``-m`` leaves out."""
    for item in items:
        if marks := [mark for mark in tiers.MARKS if item.get_closest_marker(mark)]:
            counts = item.config.stash[LEFT_OUT]
            counts[marks[0]] = counts.get(marks[0], 0) + 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell xdist's controller, which selects nothing itself."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash[LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Hear it from one worker: all select alike."""
    if counts := getattr(node, "workeroutput", {}).get("left_out"):
        node.config.stash[LEFT_OUT] = counts


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadgroup``, have tests that share something costly on one worker."""
    return tiers.GroupScheduling(config, log) if config.option.dist == "loadgroup" else None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say in one line each what this run left out, and what this machine lacks."""
    if left_out := config.stash[LEFT_OUT]:
        counts = ", ".join(f"{mark} ({count})" for mark, count in sorted(left_out.items()))
        terminalreporter.write_line(f"left out: {counts}. All tests: make test-all")
    skipped = terminalreporter.getreports("skipped")
    if missing := lacks.missing(report.longrepr[2] for report in skipped):
        terminalreporter.write_line(f"left out for lack of: {missing}. CI installs it: .ci/run")
