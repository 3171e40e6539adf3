"""The compose provider on the bench, with the plugin of ``docker compose``."""

from __future__ import annotations

from contextlib import AbstractContextManager

import bench_compose

from support import compose_versions, engine_images


class Bench(bench_compose.Bench):
    """See ``bench.Bench``."""

    provider = "compose"

    def unavailable(self) -> str:
        if compose_versions.v2() is None:
            return "version 2 of Compose is not here (.ci/compose fetches it)"
        return engine_images.unavailable()

    def platform(self) -> AbstractContextManager[object]:
        return compose_versions.with_plugin()
