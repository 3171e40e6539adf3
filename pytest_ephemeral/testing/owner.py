"""A process that owns an environment: prints the environment as JSON, and waits.

``python -m pytest_ephemeral.testing.owner REQUEST-FILE [keep]``. It exits after it has read a line.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

from pytest_ephemeral import models, providers
from pytest_ephemeral.testing.bench import make_order

if __name__ == "__main__":
    # Only for this process: docker-compose 1.29 would load libraries of another Python.
    os.environ.pop("PYTHONPATH", None)
    file, *keep = sys.argv[1:]
    template, image, lifetime = pickle.loads(Path(file).read_bytes())  # noqa: S301 - the suite's
    order = make_order(template, image, lifetime=lifetime)
    provider = providers.load(order.template.provider)
    environment = provider.launch(order)
    if keep:
        provider.keep(environment)
    print(models.encode(environment).decode().replace("\n", ""), flush=True)
    sys.stdin.readline()
