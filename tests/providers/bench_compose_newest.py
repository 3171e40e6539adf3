"""The compose provider on the bench, with the newest Docker and its other store of images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import bench_compose

from support import compose_versions, engines


class Bench(bench_compose.Bench):
    """See ``bench.Bench``."""

    provider = "compose"

    def unavailable(self) -> str:
        return engines.newest_unavailable()

    @contextmanager
    def platform(self) -> Iterator[None]:
        """The engine and the newest plugin, used by all that follows."""
        with (
            engines.newest_dockerd() as engine,
            engines.used(engine),
            compose_versions.with_plugin(
                engines.NEWEST / "libexec/docker/cli-plugins/docker-compose"
            ),
        ):
            yield
