"""Runs that are killed: forks once for each, so that a hundred cost no more than one to import.

``python -m aws.victim FOLDER KNOWN``; each line on standard input is a run's name. The child stops
itself until whoever watches has arranged its death; then its exit status is printed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from aws.conftest import Bench, quick
from aws.harness import Known
from pytest_ephemeral.environments.lifecycle import Lifecycle


def main(folder: Path, known: Known) -> None:
    """Fork a run a line."""
    import boto3  # noqa: F401 - once, for all of them

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            run(folder / line.strip(), known)
        _, status = os.waitpid(child, os.WUNTRACED)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(status, flush=True)


def run(folder: Path, known: Known) -> None:
    """Bake, launch, destroy."""
    os.environ["PYTEST_EPHEMERAL_STATE"] = str(folder / "state")
    folder.mkdir()
    try:
        quick(pytest.MonkeyPatch(), every=0.02)
        bench = Bench(known, folder, store=folder.parent / "store")
        bench.keys = {"install": [f"echo {folder.name}"], "artifact": None, "verify": []}
        # No watchdog: it would clean up at once, and what reap can do is what is asked.
        Lifecycle._guard = lambda _: None  # type: ignore[method-assign]
        template = bench.template(command=None, port=None)
        environment = bench.lifecycle.bring_up(template).environment
        bench.lifecycle.destroy(environment)
    except BaseException as error:  # noqa: BLE001
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Known.of(sys.argv[2]))
