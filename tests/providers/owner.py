"""A process that owns an environment: prints it as JSON, and waits for its end.

``python owner.py BENCH KIND IMAGE-FILE LIFETIME [keep]``. Reads a line before it exits.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))  # as pytest has it

import bench

from pytest_ephemeral import models, providers

if __name__ == "__main__":
    name, kind, image_file, lifetime, *keep = sys.argv[1:]
    image = models.decode(Path(image_file).read_bytes(), models.Image)
    ordered = bench.order(
        bench.load(name).template(kind),  # type: ignore[arg-type]
        image,
        lifetime=float(lifetime),
    )
    provider = providers.load(ordered.template.provider)
    environment = provider.launch(ordered)
    if keep:
        provider.keep(environment)
    print(models.encode(environment).decode().replace("\n", ""), flush=True)
    sys.stdin.readline()
