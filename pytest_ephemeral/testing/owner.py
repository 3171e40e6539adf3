"""A process that owns an environment: prints it as JSON, and waits for its end.

``python -m pytest_ephemeral.testing.owner REQUEST-FILE [keep]``. Reads a line before it exits.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

from pytest_ephemeral import models, providers
from pytest_ephemeral.testing.bench import make_order

if __name__ == "__main__":
    # It is for this process: docker-compose 1.29 would find another Python's libraries by it.
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
