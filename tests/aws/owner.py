"""A process that brings an environment up and, when it is told to, destroys it.

``python -m aws.owner FOLDER KNOWN``: says ``up``, and destroys at the first line it is given.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aws.conftest import Bench, quick
from aws.harness import Known
from pytest_ephemeral.tables import Ready


def main(folder: Path, known: Known) -> None:
    """Bring up; destroy."""
    quick(pytest.MonkeyPatch(), every=0.05)
    bench = Bench(known, folder)
    bench.keys = {"install": ["true"], "artifact": None, "verify": []}
    timed = bench.lifecycle.bring_up(bench.template(command=None, ready=Ready()))
    print("up", flush=True)
    sys.stdin.readline()
    bench.lifecycle.destroy(timed.environment)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Known.of(sys.argv[2]))
