"""The compose provider on the bench, with the plugin of ``docker compose``."""

from __future__ import annotations

from contextlib import AbstractContextManager

import bench_compose

from support import compose_versions


class Bench(bench_compose.Bench):
    """See ``bench.Bench``."""

    provider = "compose"

    def platform(self) -> AbstractContextManager[object]:
        return compose_versions.with_plugin()
