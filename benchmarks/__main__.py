"""Measure, and print one table.

Both sides of a comparison run in the same round, one after the other, so that a change in the
machine's speed affects both. The table has medians over the rounds.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pluggy

from benchmarks.workshop import Application, Workshop, free_port, started
from pytest_ephemeral import hookspecs
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.project import Project

PLUGIN = ("-p", "pytest_ephemeral.pytest_plugin.plugin")
FOUR_WORKERS = ("-p", "xdist", "-n4")


class Row(NamedTuple):
    """One line of the table; ``base`` and ``ours`` are in seconds, the rest is in ``unit``."""

    what: str
    base: float
    ours: float
    measured: float
    target: float
    unit: str


def main(rounds: int) -> int:
    """Run all measurements, and print the table."""
    with tempfile.TemporaryDirectory(prefix="ephemeral-bench-") as folder:
        workshop = Workshop.create(Path(folder).resolve())
        os.environ.update(workshop.variables)
        lifecycle = open_lifecycle(workshop)
        say("baking")
        applications = bake(lifecycle)
        say("pytest without --ephemeral-env")
        rows = [idle(workshop, rounds * 3)]
        for application in applications:
            say(f"{application.name}: launch to ready")
            rows.append(launch(lifecycle, application, rounds * 2))
            say(f"{application.name}: two tests")
            rows.append(two_tests(workshop, application, rounds))
            say(f"{application.name}: -n 4")
            rows.append(four_workers(workshop, application, rounds))
    show(rows, rounds)
    return 0


def open_lifecycle(workshop: Workshop) -> Lifecycle:
    """Make the lifecycle that brings environments up, as the plugin does."""
    manager = pluggy.PluginManager("pytest")
    manager.add_hookspecs(hookspecs)
    project = Project.open(workshop.folder / "ephemeral.toml", workshop.folder)
    return Lifecycle(project, manager.hook, run="bench")


def bake(lifecycle: Lifecycle) -> list[Application]:
    """Bake both images; return the commands that start their applications by hand."""
    tiny, shop = (lifecycle.image(name).reference for name in ("tiny", "shop"))
    at, port = "127.0.0.1", free_port()
    serve = [f"{shop}/bin/shop", "serve", "--host", at, "--port", str(port)]
    return [
        Application("tiny", [sys.executable, f"{tiny}/tiny.py", at, str(port)], port),
        Application("shop", serve, port),
    ]


def idle(workshop: Workshop, rounds: int) -> Row:
    """A run without an environment: with the plugin, compared with no plugin."""

    def measure() -> tuple[float, float]:
        base = workshop.pytest("idle")
        return base, workshop.pytest("idle", *PLUGIN)

    base, ours, over = compare(measure, rounds, difference)
    return Row("pytest without --ephemeral-env", base, ours, over * 1000, 10, "ms over")


def launch(lifecycle: Lifecycle, application: Application, rounds: int) -> Row:
    """From launch to ready, compared with Popen and a loop that connects every 2 ms."""
    template = lifecycle.project.config.template(application.name)

    def measure() -> tuple[float, float]:
        with started(application) as base:
            pass
        timed = lifecycle.bring_up(template)
        lifecycle.destroy(timed.environment)
        return base, timed.seconds["launch"] + timed.seconds["ready"]

    base, ours, ratio = compare(measure, rounds, lambda base, ours: ours / base)
    return Row(f"{application.name}: launch to ready", base, ours, ratio, 1.2, "x")


def two_tests(workshop: Workshop, application: Application, rounds: int) -> Row:
    """Two tests on a session environment, compared with bare pytest and a start by hand."""

    def measure() -> tuple[float, float]:
        with started(application) as start:
            bare = workshop.pytest("bare/two", BENCH_URL=application.url)
        ours = workshop.pytest(
            "ephemeral/two", *PLUGIN, "--ephemeral-env", f"--ephemeral-template={application.name}"
        )
        return start + bare, ours

    base, ours, over = compare(measure, rounds, difference)
    return Row(f"{application.name}: two tests", base, ours, over, 0.25, "s over")


def four_workers(workshop: Workshop, application: Application, rounds: int) -> Row:
    """Tests in four workers on one environment, compared with bare pytest with four workers."""

    def measure() -> tuple[float, float]:
        with started(application):
            bare = workshop.pytest("bare/many", *FOUR_WORKERS, BENCH_URL=application.url)
        ours = workshop.pytest(
            "ephemeral/many",
            *FOUR_WORKERS,
            *PLUGIN,
            "--ephemeral-env",
            f"--ephemeral-template={application.name}",
        )
        return bare, ours

    base, ours, over = compare(measure, rounds, difference)
    return Row(f"{application.name}: pytest -n 4", base, ours, over, 0.2, "s over")


def difference(base: float, ours: float) -> float:
    """The seconds by which ours takes longer than the base."""
    return ours - base


def compare(
    measure: Callable[[], tuple[float, float]],
    rounds: int,
    relation: Callable[[float, float], float],
) -> tuple[float, float, float]:
    """The medians of both sides, and of ``relation`` of both within each round."""
    measure()  # the first round fills caches for the others
    pairs = [measure() for _ in range(rounds)]
    bases, ours = zip(*pairs, strict=True)
    return median(bases), median(ours), median(relation(*pair) for pair in pairs)


def show(rows: list[Row], rounds: int) -> None:
    """Print the table."""
    print(f"\nmedians of {rounds} rounds or more, both sides measured in every round\n")
    print(f"{'':32}{'without':>10}{'with':>10}{'measured':>16}{'target':>18}")
    for line in lines(rows):
        print(line)


def lines(rows: list[Row]) -> Iterator[str]:
    """The lines of the table, one for each comparison."""
    for row in rows:
        places = 1 if row.unit.startswith("ms") else 2
        measured = f"{row.measured:.{places}f} {row.unit}"
        target = f"≤ {row.target:g} {row.unit}"
        verdict = "reached" if row.measured <= row.target else "MISSED"
        seconds = f"{row.base:9.3f}s{row.ours:9.3f}s"
        yield f"{row.what:32}{seconds}{measured:>16}{target:>18}  {verdict}"


def say(text: str) -> None:
    """Print on stderr which measurement is running."""
    print(f"… {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 7))
