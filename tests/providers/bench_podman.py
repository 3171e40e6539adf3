"""The docker provider on the bench, with the newest Podman's service in the place of Docker's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import bench_docker

from support import engines


class Bench(bench_docker.Bench):
    """See ``bench.Bench``."""

    provider = "docker"

    def unavailable(self) -> str:
        return engines.newest_podman_unavailable()

    @contextmanager
    def platform(self) -> Iterator[None]:
        """The service, used by all that follows."""
        with engines.podman(engines.NEWEST_PODMAN) as engine, engines.used(engine):
            yield
