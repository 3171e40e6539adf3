"""The docker provider on the bench, with the newest Docker and its other store of images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import bench_docker

from support import engines


class Bench(bench_docker.Bench):
    """See ``bench.Bench``."""

    provider = "docker"

    def unavailable(self) -> str:
        return engines.newest_unavailable()

    @contextmanager
    def platform(self) -> Iterator[None]:
        """The engine, used by all that follows."""
        with engines.newest_dockerd() as engine, engines.used(engine):
            yield
