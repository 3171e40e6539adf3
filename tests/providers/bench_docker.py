"""The docker provider on the bench, with the machine's engine and with others."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.docker import endpoint
from pytest_ephemeral.providers.docker.tables import DockerRecipe, DockerTemplate
from pytest_ephemeral.tables import Recipe, Template
from pytest_ephemeral.testing import APPLICATION, Kind
from support import engine_images, engines, podman_engines
from support.engines import Engine

SERVE = ["python3", "/application.py", "0.0.0.0"]


class Bench:
    """See ``bench.Bench``."""

    parts = ("app",)

    def unavailable(self) -> str:
        return engine_images.unavailable()

    def recipe(self, root: Path) -> Recipe:
        return recipe(root)

    def template(self, kind: Kind) -> Template:
        match kind:
            case "web":
                return _template(kind, command=[*SERVE, "8080"], port=8080)
            case "pair":
                serve = " ".join(SERVE)
                return _template(
                    kind,
                    command=f"{serve} 9000 & exec {serve} 8080",
                    ports={"http": 8080, "admin": 9000},
                )
            case "crash":
                return _template(kind, command="echo no database >&2; exit 3", port=8080)
            case "elsewhere":
                return _template(kind, command=[*SERVE, "18478"], port=18477)

    def traces(self, environment: Environment) -> Sequence[str]:
        return traces(environment.id)


class OtherEngineBench(Bench):
    """A bench with an engine of its own, which all its tests use."""

    @contextmanager
    def platform(self) -> Iterator[None]:
        with self.start_engine() as engine, engines.use(engine):
            yield

    def start_engine(self) -> AbstractContextManager[Engine]:
        raise NotImplementedError


class NewestBench(OtherEngineBench):
    """The newest Docker, which stores images differently."""

    def unavailable(self) -> str:
        return engines.newest_unavailable()

    def start_engine(self) -> AbstractContextManager[Engine]:
        return engines.newest_dockerd()


class PodmanBench(OtherEngineBench):
    """The newest Podman's service, instead of Docker."""

    def unavailable(self) -> str:
        return podman_engines.newest_unavailable()

    def start_engine(self) -> AbstractContextManager[Engine]:
        return podman_engines.start(podman_engines.NEWEST)


class RootlessBench(OtherEngineBench):
    """The service of a rootless Podman."""

    def unavailable(self) -> str:
        return podman_engines.rootless_unavailable()

    def start_engine(self) -> AbstractContextManager[Engine]:
        return podman_engines.start_rootless()


def recipe(root: Path) -> DockerRecipe:
    """Return the recipe of a container image with the application."""
    context = root / "context"
    context.mkdir()
    shutil.copy(APPLICATION, context)
    (context / "Dockerfile").write_text(
        f"FROM {engine_images.python()}\nCOPY application.py /\nENV PYTHONDONTWRITEBYTECODE=1\n"
    )
    return DockerRecipe(name="app", context="context", verify=["test -f /application.py"])


def traces(id: str) -> list[str]:
    """List the containers, networks and volumes whose name or labels contain the id."""
    engine = endpoint.find()
    everything = {
        "container": engine.call("GET", "/containers/json", query={"all": True}),
        "network": engine.call("GET", "/networks"),
        "volume": engine.call("GET", "/volumes")["Volumes"] or [],
    }
    return [
        f"{kind} {thing.get('Names') or thing.get('Name')}"
        for kind, things in everything.items()
        for thing in things
        if id in str(thing)
    ]


def _template(name: str, **keys: object) -> DockerTemplate:
    return DockerTemplate(name=name, image="app", volumes=["data:/data"], **keys)  # type: ignore[arg-type]
