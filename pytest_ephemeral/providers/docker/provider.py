"""The docker provider: an environment is a container on a network of its own."""

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
from pytest_ephemeral.providers.docker.tables import (
    DockerRecipe,
    DockerTemplate,
)
from pytest_ephemeral.providers.protocol import Check, Order, Owned, Status
from pytest_ephemeral.tables import Recipe, Template


class DockerProvider(ContainerEnvironments, ContainerRollback, DockerBaker):
    """Runs environments as containers; see ``Provider`` for what is promised."""

    name: ClassVar[str] = "docker"
    template_type: ClassVar[type[Template]] = DockerTemplate
    recipe_type: ClassVar[type[Recipe] | None] = DockerRecipe

    def doctor(self) -> Sequence[Check]:
        """Whether an engine answers."""
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
        """Its volumes are its own; a database elsewhere is not."""
        assert isinstance(template, DockerTemplate)
        command = template.command or ""
        commands = [command] if isinstance(command, str) else command
        external_state.refuse_databases(
            template, dict(os.environ), commands=commands, own={"localhost", "127.0.0.1"}
        )

    def status(self, environment: Environment) -> Status:
        """How its container is."""
        return super().status(environment) if _is_odd(environment) else Status("running")

    def list_owned(self) -> Iterator[Owned]:
        """All environments, and what bakes have left."""
        seen = set()
        for found in super().list_owned():
            seen.add(found.id)
            yield found
        yield from (one for one in quarantine.list_owned(endpoint.find()) if one.id not in seen)

    def sweep(self, owned: Owned) -> None:
        """Remove all of one; of a bake, also the image that was not verified."""
        super().sweep(owned)
        with name_failures(owned):
            quarantine.sweep(endpoint.find(), owned.id)


def _is_odd(environment: Environment) -> bool:
    """Whether there is more to say of its container than that it runs."""
    if CONTAINER not in environment.handle:
        return True
    try:
        engine = identity.engine_of(environment.handle)
        state = containers.inspect(engine, environment.handle[CONTAINER])["State"]
    except (EphemeralError, TimeoutError):
        return True
    health = (state.get("Health") or {}).get("Status")
    return state["Status"] != "running" or health == "unhealthy"


def _check_exposed(template: DockerTemplate, image: Image) -> None:
    """Refuse a port that the image does not expose, if it exposes any: nobody would listen."""
    exposed = image.handle.get("exposed", "").split() + image.handle.get("udp", "").split()
    for name, port in template.endpoints().items():
        if exposed and str(port) not in exposed:
            raise LaunchError(describe_unexposed(template.name, name, port, image.name, exposed))


def describe_unexposed(
    template: str, name: str, port: int, what: str, exposed: Sequence[str]
) -> str:
    """The message for a port that is not exposed."""
    return (
        f"templates.{template}: port {port} ({name}) is not exposed by {what!r}, which exposes "
        f"{', '.join(exposed)}: ask for one of these, or add `EXPOSE {port}` to its Dockerfile "
        "if the application does listen there"
    )
