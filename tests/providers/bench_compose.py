"""The compose provider on the bench: its templates are the Compose files beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import bench_docker

from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.compose.tables import ComposeTemplate, Place
from pytest_ephemeral.tables import Recipe, Template
from pytest_ephemeral.testing import Kind
from support import compose_versions, engine_images, engines


class Bench:
    """See ``bench.Bench``."""

    parts = ("web", "worker")

    def unavailable(self) -> str:
        return engine_images.unavailable()

    def platform(self) -> AbstractContextManager[object]:
        return compose_versions.without_plugin()

    def recipe(self, root: Path) -> Recipe:
        return bench_docker.recipe(root)

    def template(self, kind: Kind) -> Template:
        worker = {"admin": Place(service="worker", port=9000)} if kind == "pair" else {}
        return ComposeTemplate(
            name=kind,
            file=str(Path(__file__).with_name("compose") / f"{kind}.yaml"),
            service="web",
            port=18477 if kind == "elsewhere" else 8080,
            replaced=dict.fromkeys(self.parts if worker else ["web"], "app"),
            further=worker,
        )

    def traces(self, environment: Environment) -> Sequence[str]:
        return bench_docker.traces(environment.id)


class PluginBench(Bench):
    """With the plugin of ``docker compose``."""

    def platform(self) -> AbstractContextManager[object]:
        return compose_versions.with_plugin()


class NewestBench(Bench):
    """With the newest plugin, and the newest Docker, which stores images differently."""

    def unavailable(self) -> str:
        return engines.newest_unavailable()

    @contextmanager
    def platform(self) -> Iterator[None]:
        plugin = engines.NEWEST / "libexec/docker/cli-plugins/docker-compose"
        with (
            engines.newest_dockerd() as engine,
            engines.use(engine),
            compose_versions.with_plugin(plugin),
        ):
            yield
