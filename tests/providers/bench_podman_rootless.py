"""The docker provider on the bench, with the service of a Podman whose user has no rights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import bench_docker

from support import engines


class Bench(bench_docker.Bench):
    """See ``bench.Bench``."""

    provider = "docker"

    def unavailable(self) -> str:
        return engines.rootless_unavailable()

    @contextmanager
    def platform(self) -> Iterator[None]:
        """The service, used by all that follows."""
        with engines.rootless_podman() as engine, engines.used(engine):
            yield
