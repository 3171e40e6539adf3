"""Measure, and print one table.

Whatever is compared runs in the same round, one after the other, and every round runs all of it:
a machine that grows slower does so for both sides. Given are medians over the rounds.
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
    """One line of the table; ``measured`` and ``target`` are in ``unit``."""

    what: str
    base: float
    ours: float
    measured: float
    target: float
    unit: str


def main(rounds: int) -> int:
    """Measure everything."""
    with tempfile.TemporaryDirectory(prefix="ephemeral-bench-") as folder:
        workshop = Workshop.furnish(Path(folder).resolve())
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
    """What brings environments up, as the plugin opens it."""
    manager = pluggy.PluginManager("pytest")
    manager.add_hookspecs(hookspecs)
    project = Project.open(workshop.folder / "ephemeral.toml", workshop.folder)
    return Lifecycle(project, manager.hook, run="bench")


def bake(lifecycle: Lifecycle) -> list[Application]:
    """Bake both images, and say how their applications are started by hand."""
    tiny, shop = (lifecycle.image(name).reference for name in ("tiny", "shop"))
    at, port = "127.0.0.1", free_port()
    serve = [f"{shop}/bin/shop", "serve", "--host", at, "--port", str(port)]
    return [
        Application("tiny", [sys.executable, f"{tiny}/tiny.py", at, str(port)], port),
        Application("shop", serve, port),
    ]


def idle(workshop: Workshop, rounds: int) -> Row:
    """A run that wants no environment: with the plugin, over one with the plugin disabled."""

    def measure() -> tuple[float, float]:
        base = workshop.pytest("idle")
        return base, workshop.pytest("idle", *PLUGIN)

    base, ours, over = compare(measure, rounds, difference)
    return Row("pytest without --ephemeral-env", base, ours, over * 1000, 10, "ms over")


def launch(lifecycle: Lifecycle, application: Application, rounds: int) -> Row:
    """From launch to ready, against Popen and a loop that connects every 2 ms."""
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
    """Two tests on a session environment, over bare pytest and the application's own start."""

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
    """Tests in four workers on one environment, over bare pytest with four workers."""

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
    """How much ours takes over the base."""
    return ours - base


def compare(
    measure: Callable[[], tuple[float, float]],
    rounds: int,
    relation: Callable[[float, float], float],
) -> tuple[float, float, float]:
    """The medians of both sides, and of their relation within each round."""
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
    """The table, a line a comparison."""
    for row in rows:
        places = 1 if row.unit.startswith("ms") else 2
        measured = f"{row.measured:.{places}f} {row.unit}"
        target = f"≤ {row.target:g} {row.unit}"
        verdict = "reached" if row.measured <= row.target else "MISSED"
        seconds = f"{row.base:9.3f}s{row.ours:9.3f}s"
        yield f"{row.what:32}{seconds}{measured:>16}{target:>18}  {verdict}"


def say(text: str) -> None:
    """Tell who waits what is being measured."""
    print(f"… {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 7))
