"""The docker provider on the bench, with Podman's service in the place of Docker's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import bench_docker

from support import engines


class Bench(bench_docker.Bench):
    """See ``bench.Bench``."""

    provider = "docker"

    def unavailable(self) -> str:
        return engines.unavailable("podman")

    @contextmanager
    def platform(self) -> Iterator[None]:
        """The service, used by all that follows."""
        with engines.podman() as engine, engines.used(engine):
            yield
