"""`make bench` on a machine that has not everything: what can't be measured is left out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.walkthrough import ROOT


@pytest.mark.parametrize(
    ("variables", "without"),
    [
        ({"PATH": "/nowhere"}, "docker, which is not installed"),
        ({"DOCKER_HOST": "unix:///nowhere"}, "a container engine: "),
    ],
)
def test_without_an_engine_containers_are_left_out(
    tmp_path: Path, variables: dict[str, str], without: str
) -> None:
    """It is said in one line, and is no failure."""
    for name in ("docker", "busybox"):
        (tmp_path / name).touch(mode=0o755)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.containers", "1"],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"left out: containers, for lack of {without}")
