"""`make bench` leaves out what it can't measure on a machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from examples.walkthrough import ROOT
from support import processes


@pytest.mark.parametrize(
    ("variables", "without"),
    [
        ({"PATH": "/nowhere"}, "docker, which is not installed"),
        ({"DOCKER_HOST": "unix:///nowhere"}, "a container engine: "),
    ],
)
def test_bench_skips_containers_without_an_engine(
    tmp_path: Path, variables: dict[str, str], without: str
) -> None:
    """One line names what is missing, and the benchmark succeeds."""
    for name in ("docker", "busybox"):
        (tmp_path / name).touch(mode=0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
    bench = [sys.executable, "-m", "benchmarks.containers", "1"]
    done = processes.run(*bench, folder=ROOT, environ=environ)
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"left out: containers, for lack of {without}")
