"""The compose provider: each environment is a project of the compose command."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from pytest_ephemeral import machine
from pytest_ephemeral.errors import EphemeralError, LaunchError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers import external_state
from pytest_ephemeral.providers.compose.command import Compose
from pytest_ephemeral.providers.compose.launch import Launch
from pytest_ephemeral.providers.compose.tables import ComposeTemplate
from pytest_ephemeral.providers.docker import endpoint, identity
from pytest_ephemeral.providers.docker.doctor import engine_check
from pytest_ephemeral.providers.docker.environments import ContainerEnvironments
from pytest_ephemeral.providers.docker.rollback import ContainerRollback
from pytest_ephemeral.providers.protocol import Check, Order
from pytest_ephemeral.tables import Recipe, Template


class ComposeProvider(ContainerEnvironments, ContainerRollback):
    """Runs environments from Compose files; see ``Provider``."""

    name: ClassVar[str] = "compose"
    template_type: ClassVar[type[Template]] = ComposeTemplate
    recipe_type: ClassVar[type[Recipe] | None] = None

    def doctor(self) -> Sequence[Check]:
        """Check that an engine answers, and that there is a compose command."""
        return [engine_check(), _command_check()]

    def launch(self, order: Order) -> Environment:
        """Bring the project up by the compose command."""
        if not isinstance(order.template, ComposeTemplate):
            raise LaunchError(
                f"{order.environment.id}: template {order.template.name!r} is not a Compose "
                "template"
            )
        compose, engine = Compose.find(), endpoint.find()
        launch = Launch(compose, engine, order, order.template)
        launch.read()
        launch.order = identity.begin_launch(order, engine)
        return launch.up()

    def check_rollback(self, template: Template, root: Path, /) -> None:
        """Refuse folders of this machine, external volumes and databases elsewhere."""
        assert isinstance(template, ComposeTemplate)
        environment = Environment(
            id="check-rollback",
            template=template.name,
            provider=self.name,
            created_at=datetime.now(UTC),
            expires_at=None,
            owner=machine.this_owner(""),
        )
        variables = {
            name: external_state.fill(value, dict(os.environ))
            for name, value in template.env.items()
        }
        order = Order(environment=environment, template=template, root=root, variables=variables)
        Launch(Compose.find(), endpoint.find(), order, template).check_state()


def _command_check() -> Check:
    name = "compose command"
    try:
        compose = Compose.find()
    except EphemeralError as error:
        what, _, hint = str(error).rpartition(": ")
        return Check(name=name, ok=False, detail=what, hint=hint)
    return Check(name=name, ok=True, detail=f"{' '.join(compose.argv)} {compose.version()}")
