"""The compose provider: an environment is a project of the compose command's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec

from pytest_ephemeral.errors import ConfigurationError, EphemeralError, LaunchError
from pytest_ephemeral.interpolation import mask
from pytest_ephemeral.models import Endpoint, Environment
from pytest_ephemeral.providers.compose import project
from pytest_ephemeral.providers.compose.command import CommandResult, Compose, parse
from pytest_ephemeral.providers.compose.tables import ComposeTemplate
from pytest_ephemeral.providers.docker import (
    bases,
    containers,
    endpoint,
    errors,
    identity,
    logs,
    resources,
)
from pytest_ephemeral.providers.docker.doctor import engine_check
from pytest_ephemeral.providers.docker.engine import Engine
from pytest_ephemeral.providers.docker.environments import (
    MAIN,
    SERVING,
    ContainerEnvironments,
    begin_launch,
    masking_of,
    part_of,
)
from pytest_ephemeral.providers.docker.provider import (
    describe_unexposed,
    find_endpoints,
    publish_address,
)
from pytest_ephemeral.providers.docker.resources import name_of
from pytest_ephemeral.providers.protocol import Check, Order
from pytest_ephemeral.tables import Recipe, Template

_LAST_LINES: Final = 20


class ComposeProvider(ContainerEnvironments):
    """Brings up Compose files; see ``Provider`` for what is promised."""

    name: ClassVar[str] = "compose"
    template_type: ClassVar[type[Template]] = ComposeTemplate
    recipe_type: ClassVar[type[Recipe] | None] = None

    def doctor(self) -> Sequence[Check]:
        """Whether an engine answers, and which compose command there is."""
        return [engine_check(), _command_check()]

    def launch(self, order: Order) -> Environment:
        """Have the compose command bring it all up."""
        environment, template = order.environment, order.template
        if not isinstance(template, ComposeTemplate):
            raise LaunchError(
                f"{environment.id}: template {template.name!r} is not a Compose template"
            )
        file = order.root / template.file
        if not file.is_file():
            raise ConfigurationError(f"templates.{template.name}.file: {file} is not there")
        engine = endpoint.find()
        launch = _Launch(Compose.find(), engine, begin_launch(order, engine), template, file)
        launch.up(launch.prepare())
        return launch.describe()

    def pending_health(self, environment: Environment) -> str:
        """Which of its health checks have not succeeded yet."""
        engine = identity.engine_of(environment.handle)
        waiting = [
            f"{part_of(one)} is {'starting' if 'starting)' in one['Status'] else 'unhealthy'}"
            for one in resources.containers(engine, environment.id)
            if "(health: starting)" in one["Status"] or "(unhealthy)" in one["Status"]
        ]
        return f"health checks: {', '.join(waiting)}" if waiting else ""


class _Launch:
    """Bringing up one environment."""

    def __init__(
        self, compose: Compose, engine: Engine, order: Order, template: ComposeTemplate, file: Path
    ) -> None:
        self.compose = compose
        self.engine = engine
        self.order = order
        self.template = template
        self.file = file

    def prepare(self) -> str:
        """The file of this environment, as the compose command reads it."""
        said = self._run("--file", str(self.file), *self._profiles(), "config")
        if said.status != 0:
            raise ConfigurationError(
                f"templates.{self.template.name}: {self.template.file} can't be used: "
                f"{self._complaint(said)}"
            )
        meant = parse(said.output)
        services = project.check_services(meant, self.template)
        for name, at in self.template.places().items():
            self._check_exposed(name, at.port, at.service, services[at.service])
        environment = self.order.environment
        changed = project.prepare(
            meant,
            self.template,
            self.order.images,
            labels=resources.labels_for(environment, ComposeProvider.name),
            secrets=self.order.secrets,
            address=publish_address(self.engine),
        )
        return json.dumps(changed, default=str)

    def up(self, text: str) -> None:
        """Bring it up; what depends on healthy services is waited for by the command."""
        said = self._run("--file", "-", "up", "--detach", "--no-build", "--quiet-pull", text=text)
        if said.status != 0:
            raise LaunchError(
                f"{self.order.environment.id} could not be brought up: {self._complaint(said)}"
                + self._last_words()
            )

    def describe(self) -> Environment:
        """The environment, with where it is reached."""
        environment = self.order.environment
        found = {
            part_of(one): one["Id"] for one in resources.containers(self.engine, environment.id)
        }
        endpoints: dict[str, Endpoint] = {}
        for name, at in self.template.places().items():
            if at.service not in found:
                raise LaunchError(
                    f"{environment.id}: the service {at.service!r} of {self.template.file} has no "
                    "container: does the file ask for none of it (deploy.replicas, scale)?"
                )
            one = containers.inspect(self.engine, found[at.service])
            endpoints |= find_endpoints(self.engine, one, {name: at.port})
        return msgspec.structs.replace(
            environment,
            endpoints=endpoints,
            url=next(iter(endpoints.values())).url,
            handle={
                **environment.handle,
                MAIN: self.template.service,
                SERVING: " ".join({at.service for at in self.template.places().values()}),
            },
        )

    def _run(self, *arguments: str, text: str = "") -> CommandResult:
        return self.compose.run(
            arguments,
            project=name_of(self.order.environment.id),
            folder=self.file.parent,
            variables=self.order.variables,
            address=self.engine.address,
            text=text,
        )

    def _profiles(self) -> list[str]:
        return [f"--profile={profile}" for profile in self.template.profiles]

    def _complaint(self, said: CommandResult) -> str:
        """What the command complained of, without its progress."""
        lines = [line.strip() for line in said.progress.splitlines() if line.strip()]
        # Its progress says of each that there was an error, but not which.
        lines = [line for line in lines if not line.endswith(("... error", " Error"))] or lines
        reasons = [line for line in lines if "error" in line.lower()] or lines[-_LAST_LINES:]
        text = "; ".join(dict.fromkeys(reasons)) or "it says nothing"
        return mask(text + errors.find_remedy(text), self.order.secrets)

    def _last_words(self) -> str:
        """How the parts that don't run have ended, with the last lines of their logs."""
        text = ""
        for one in resources.containers(self.engine, self.order.environment.id):
            try:
                found = containers.inspect(self.engine, one["Id"])
                if found["State"]["ExitCode"] == 0 and "(unhealthy)" not in one["Status"]:
                    continue
                masked = masking_of(self.engine, self.order.environment, [one["Id"]])
                log = logs.read(self.engine, one["Id"], masked, tail=_LAST_LINES)
            except EphemeralError:
                continue
            how = containers.exit_reason(found["State"])
            how += containers.describe_architecture(self.engine, found)
            text += f"\n  {part_of(one)} {how}; the last lines of its log:\n"
            text += "".join(f"    {line.rstrip()}\n" for _, line in log)
        return text.rstrip()

    def _check_exposed(
        self, name: str, port: int, service_name: str, service: Mapping[str, Any]
    ) -> None:
        """Refuse a port that neither the image nor the file exposes, if they expose any."""
        exposed = project.list_exposed(dict(service))
        if service_name in self.template.replaced:
            image = self.order.images[self.template.replaced[service_name]]
            exposed += image.handle.get("exposed", "").split()
        elif found := bases.find_local(self.engine, str(service.get("image"))):
            exposed += bases.list_exposed(found["Config"])
        is_range = any("-" in one for one in exposed)
        if exposed and not is_range and str(port) not in exposed:
            ports = sorted(set(exposed), key=int)
            raise LaunchError(
                describe_unexposed(self.template.name, name, port, service_name, ports)
            )


def _command_check() -> Check:
    name = "compose command"
    try:
        compose = Compose.find()
    except EphemeralError as error:
        what, _, hint = str(error).rpartition(": ")
        return Check(name=name, ok=False, detail=what, hint=hint)
    return Check(name=name, ok=True, detail=f"{' '.join(compose.argv)} {compose.version()}")
