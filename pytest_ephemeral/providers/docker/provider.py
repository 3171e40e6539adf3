"""The docker provider: each environment is a container."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from pytest_ephemeral.errors import EphemeralError, LaunchError
from pytest_ephemeral.models import Environment, Image
from pytest_ephemeral.providers import external_state
from pytest_ephemeral.providers.docker import (
    containers,
    endpoint,
    errors,
    identity,
    image_store,
    quarantine,
)
from pytest_ephemeral.providers.docker.baking import DockerBaker
from pytest_ephemeral.providers.docker.doctor import engine_check
from pytest_ephemeral.providers.docker.engine import EngineError, NoEngineError
from pytest_ephemeral.providers.docker.environments import ContainerEnvironments, name_failures
from pytest_ephemeral.providers.docker.launch import launch_container
from pytest_ephemeral.providers.docker.resources import CONTAINER
from pytest_ephemeral.providers.docker.rollback import ContainerRollback
from pytest_ephemeral.providers.docker.tables import DockerRecipe, DockerTemplate
from pytest_ephemeral.providers.protocol import Check, Order, Owned, Status
from pytest_ephemeral.tables import Recipe, Template


class DockerProvider(ContainerEnvironments, ContainerRollback, DockerBaker):
    """Runs environments as containers; see ``Provider``."""

    name: ClassVar[str] = "docker"
    template_type: ClassVar[type[Template]] = DockerTemplate
    recipe_type: ClassVar[type[Recipe] | None] = DockerRecipe

    def doctor(self) -> Sequence[Check]:
        """Check that an engine answers."""
        return [engine_check()]

    def launch(self, order: Order) -> Environment:
        """Create a container, and start it."""
        environment, template, image = order.environment, order.template, order.image
        if not isinstance(template, DockerTemplate) or image is None:
            raise LaunchError(
                f"{environment.id}: template {template.name!r} is not a container template"
            )
        _check_exposed(template, image)
        engine = endpoint.find()
        try:
            return launch_container(engine, order, template, image)
        except NoEngineError:
            raise
        except (EngineError, TimeoutError) as error:
            note = containers.describe_architecture(
                engine, {"Image": image_store.id_on(engine, image)}
            )
            raise LaunchError(
                f"{environment.id} could not be launched: {errors.describe_error(error)}{note}"
            ) from error

    def check_rollback(self, template: Template, root: Path, /) -> None:  # noqa: ARG002
        """Refuse databases outside the environment; its volumes are rolled back."""
        assert isinstance(template, DockerTemplate)
        command = template.command or ""
        commands = [command] if isinstance(command, str) else command
        external_state.refuse_databases(
            template, dict(os.environ), commands=commands, own={"localhost", "127.0.0.1"}
        )

    def status(self, environment: Environment) -> Status:
        """The state of its container, by one call to the engine if it runs normally."""
        return Status("running") if _runs_normally(environment) else super().status(environment)

    def list_owned(self) -> Iterator[Owned]:
        """All resources of environments, and those of bakes that have ended."""
        seen = set()
        for found in super().list_owned():
            seen.add(found.id)
            yield found
        yield from (one for one in quarantine.list_owned(endpoint.find()) if one.id not in seen)

    def sweep(self, owned: Owned) -> None:
        """Remove all resources of an environment or a bake; a bake's unverified image, too."""
        super().sweep(owned)
        with name_failures(owned):
            quarantine.sweep(endpoint.find(), owned.id)


def _runs_normally(environment: Environment) -> bool:
    """Whether the container runs and is not unhealthy, so that there are no details to report."""
    if CONTAINER not in environment.handle:
        return False
    try:
        engine = identity.engine_of(environment.handle)
        state = containers.inspect(engine, environment.handle[CONTAINER])["State"]
    except (EphemeralError, TimeoutError):
        return False
    health = (state.get("Health") or {}).get("Status")
    return state["Status"] == "running" and health != "unhealthy"


def _check_exposed(template: DockerTemplate, image: Image) -> None:
    """Refuse a port that the image does not expose, unless it exposes none."""
    exposed = image.handle.get("exposed", "").split() + image.handle.get("udp", "").split()
    for name, port in template.endpoints().items():
        if exposed and str(port) not in exposed:
            raise LaunchError(describe_unexposed(template.name, name, port, image.name, exposed))


def describe_unexposed(
    template: str, name: str, port: int, what: str, exposed: Sequence[str], *, remedy: str = ""
) -> str:
    """The message for a port that an image does not expose."""
    return (
        f"templates.{template}: port {port} ({name}) is not exposed by {what!r}, which exposes "
        f"{', '.join(exposed)}: ask for one of these, or add "
        f"{remedy or f'`EXPOSE {port}` to its Dockerfile'} if the application does listen there"
    )
