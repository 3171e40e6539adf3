"""Launch one environment of a Compose file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from pytest_ephemeral.errors import ConfigurationError, EphemeralError, LaunchError
from pytest_ephemeral.masking import mask
from pytest_ephemeral.models import Endpoint, Environment
from pytest_ephemeral.providers import grace
from pytest_ephemeral.providers.compose import errors as compose_errors
from pytest_ephemeral.providers.compose import exposed, mounts, project
from pytest_ephemeral.providers.compose.command import CommandResult, Compose, parse
from pytest_ephemeral.providers.compose.tables import ComposeTemplate, ServicePort
from pytest_ephemeral.providers.docker import (
    bases,
    containers,
    errors,
    identity,
    image_store,
    logs,
    ports,
    resources,
)
from pytest_ephemeral.providers.docker.engine import Engine
from pytest_ephemeral.providers.docker.environments import (
    MAIN,
    SERVING,
    load_masking,
    part_of,
)
from pytest_ephemeral.providers.docker.ports import Published
from pytest_ephemeral.providers.docker.provider import describe_unexposed
from pytest_ephemeral.providers.docker.resources import name_of
from pytest_ephemeral.providers.protocol import Order

_LAST_LINES: Final = 20

#: In the command's errors: a container that exited too early.
_ENDED: Final = re.compile(r"exited \(|is unhealthy")

#: In the error of docker-compose 1.29 for a file with newer keys.
_OLD_VERSION: Final = "wrong Compose file version"
_COMPOSE_2: Final = (
    "; if the file works with `docker compose` elsewhere, it needs Compose 2, "
    "and this is docker-compose 1: install Docker's compose plugin"
)


class Launch:
    """The launch of one environment.

    Attributes:
        order: The order.
    """

    def __init__(
        self, compose: Compose, engine: Engine, order: Order, template: ComposeTemplate
    ) -> None:
        self.order = order
        self._compose = compose
        self._engine = engine
        self._template = template
        self._files = [order.root / file for file in template.files()]
        self._config: mounts.File = {}

    def read(self) -> None:
        """Read the Compose files by the compose command, and check them.

        Raises:
            ConfigurationError: They can't be used.
            LaunchError: A port is not exposed, or is in use.
        """
        self._read_config()
        services = project.check_services(self._config, self._template)
        for name, at in self._template.service_ports().items():
            self._check_exposed(name, at.port, at.service, services[at.service])
            self._check_host_port(at, services[at.service])
        for name, service in services.items():
            self._warn_of_shared_folders(name, service)

    def _read_config(self) -> None:
        where = f"templates.{self._template.name}"
        env_files = [self.order.root / file for file in self._template.env_files()]
        for key, files in {"file": self._files, "env-file": env_files}.items():
            if missing := [file for file in files if not file.is_file()]:
                raise ConfigurationError(f"{where}.{key}: there is no file {missing[0]}")
        # Join the files, as docker-compose 1.29 accepts only one; later values override earlier.
        variables = "\n".join(file.read_text() for file in env_files)
        arguments = [f"--file={file}" for file in self._files]
        arguments += [f"--profile={profile}" for profile in self._template.profiles]
        texts = {"--env-file": variables} if env_files else {}
        result = self._run([*arguments, "config"], texts)
        if result.status != 0:
            names = ", ".join(self._template.files())
            hint = _COMPOSE_2 if _OLD_VERSION in result.progress else ""
            raise ConfigurationError(
                f"{where}: {names} can't be used: {self._error_text(result)}{hint}"
            )
        self._config = parse(result.output)

    def check_state(self) -> None:
        """Check that a rollback can restore all data that services write.

        Raises:
            ConfigurationError: A service writes to a folder of this machine, to an external
                volume, or to a database elsewhere; the message names the first.
        """
        self._read_config()
        services = project.check_services(self._config, self._template)
        mounts.check_state(self._config, self._template, services)

    def up(self) -> Environment:
        """Bring the project up; the compose command waits for healthy dependencies.

        Raises:
            LaunchError: It can't be brought up.
        """
        for attempt in range(ports.ATTEMPTS):
            published = self._choose_ports()
            scale = [f"--scale={name}={count}" for name, count in self._template.scale.items()]
            up = ["up", "--detach", "--no-build", "--quiet-pull", *scale]
            result = self._run(up, {"--file": self._text(published)})
            if result.status == 0:
                return self._describe(published)
            if not ports.is_taken(result.progress) or attempt == ports.ATTEMPTS - 1:
                break
        raise LaunchError(
            f"{self.order.environment.id} could not be brought up: {self._error_text(result)}"
            + self._failed_parts(result)
        )

    def _choose_ports(self) -> Published:
        places = self._template.service_ports()
        services = project.check_services(self._config, self._template)
        of_host = [name for name, at in places.items() if _is_on_host(services[at.service])]
        udp = [name for name, at in places.items() if exposed.is_udp(services[at.service], at.port)]
        inside = {name: at.port for name, at in places.items()}
        counts = {
            name: project.replicas(self._config, self._template, at.service)
            for name, at in places.items()
        }
        published = ports.choose(
            self._engine,
            inside,
            scheme=self._template.scheme,
            udp=udp,
            host_network=of_host,
            counts=counts,
        )
        several = any(count > 1 for count in counts.values())
        ranges = not (several and identity.is_podman(self._engine))
        return msgspec.structs.replace(published, ranges=ranges)

    def _text(self, published: Published) -> str:
        """The Compose file of this environment, as JSON, which is also YAML."""
        images = self.order.images.items()
        changed = project.prepare(
            self._config,
            self._template,
            {name: image_store.id_on(self._engine, image) for name, image in images},
            labels=resources.labels_for(self.order.environment, "compose"),
            secrets=self.order.secrets,
            published=published,
        )
        return json.dumps(changed, default=str)

    def _describe(self, published: Published) -> Environment:
        """The environment, with its endpoints and URL."""
        environment = self.order.environment
        places = self._template.service_ports()
        found = {part_of(one): one for one in resources.containers(self._engine, environment.id)}
        endpoints: dict[str, Endpoint] = {}
        for name, at in places.items():
            if at.service not in found:
                raise LaunchError(
                    f"{environment.id}: the service {at.service!r} of {self._template.files()[0]} "
                    "has no container: does the file ask for 0 replicas of it "
                    "(deploy.replicas, scale)?"
                )
            endpoints[name] = published.endpoints[name]
            if published.counts[name] > 1:
                endpoints[name] = self._endpoint_of(found[at.service]["Id"], published, name)
        handle = {
            **environment.handle,
            MAIN: self._template.service,
            SERVING: " ".join(sorted({at.service for at in places.values()})),
        }
        handle.update(grace.describe(self._template.grace))
        url = next((endpoint.url for endpoint in endpoints.values()), "")
        return msgspec.structs.replace(environment, endpoints=endpoints, url=url, handle=handle)

    def _endpoint_of(self, container: str, published: Published, name: str) -> Endpoint:
        """The endpoint of the first of several containers; it may not be running yet."""
        found = containers.inspect(self._engine, container)["NetworkSettings"]["Ports"] or {}
        first = published.endpoints[name]
        bound = [int(binding["HostPort"]) for binding in found.get(published.key(name)) or ()]
        if published.ranges:
            ours = range(first.port, first.port + published.counts[name])
            bound = [port for port in bound if port in ours] or [first.port]
        if not bound:
            raise LaunchError(
                f"{self.order.environment.id}: port {published.inside[name]} ({name}) of the "
                "first container is not published: the container is not running"
            )
        return msgspec.structs.replace(first, port=bound[0])

    def _run(self, arguments: Sequence[str], texts: Mapping[str, str]) -> CommandResult:
        return self._compose.run(
            arguments,
            project=name_of(self.order.environment.id),
            folder=self._files[0].parent,
            variables=self.order.variables,
            address=self._engine.address,
            cancelled=self.order.cancelled,
            texts=texts,
        )

    def _error_text(self, result: CommandResult) -> str:
        """The errors in a command's output, without its progress."""
        names = {one["Id"]: part_of(one) for one in self._containers()}
        return mask(compose_errors.quote(result.progress, names), self.order.secrets)

    def _containers(self) -> Sequence[Mapping[str, Any]]:
        """The containers of the project; none if the engine does not list them."""
        try:
            return resources.containers(self._engine, self.order.environment.id)
        except (EphemeralError, TimeoutError):
            return ()

    def _failed_parts(self, result: CommandResult) -> str:
        """The parts that failed or are unhealthy, with the last lines of their logs."""
        text = ""
        for one in self._containers():
            try:
                found = containers.inspect(self._engine, one["Id"])
                is_unhealthy = "(unhealthy)" in one["Status"]
                failed = is_unhealthy or found["State"]["ExitCode"] != 0 or _is_blamed(one, result)
                if not failed:
                    continue
                masked = load_masking(self._engine, self.order.environment, [one["Id"]])
                log = logs.read(self._engine, one["Id"], masked, tail=_LAST_LINES)
            except EphemeralError:
                continue
            how = errors.shorten(containers.exit_reason(found["State"]))
            if is_unhealthy:
                output = masked(containers.health_output(found))
                how = f"is unhealthy; its health check says: {output}"
            how += containers.describe_architecture(self._engine, found)
            heading = "the last lines of its log:" if log else "it has printed nothing"
            text += f"\n  {part_of(one)} {how}; {heading}\n"
            text += "".join(f"    {line.rstrip()}\n" for _, line in log)
        return text.rstrip()

    def _warn_of_shared_folders(self, name: str, service: mounts.File) -> None:
        """Warn if a service may write to a folder of this machine outside the project."""
        own = self._files[0].parent.resolve()
        volumes = self._config.get("volumes") or {}
        for source, is_bound in mounts.list_writable(service, volumes):
            if is_bound and not Path(source).expanduser().resolve().is_relative_to(own):
                self.order.warn(
                    f"templates.{self._template.name}: the service {name!r} may write to {source}, "
                    "which is not the project's: its environments share it with each other, and it "
                    "outlives them. Use a named volume, or mount it read-only"
                )

    def _check_host_port(self, at: ServicePort, service: mounts.File) -> None:
        """Refuse a port of the host network that another program uses: tests would reach that."""
        udp = exposed.is_udp(service, at.port)
        if _is_on_host(service) and ports.is_in_use(self._engine, at.port, udp=udp):
            raise LaunchError(
                f"templates.{self._template.name}: the service {at.service!r} has network_mode: "
                f"host, and port {at.port} of this machine is in use: by another environment "
                f"of the file, or by another program (`ss -lnp sport = :{at.port}` lists it)"
            )

    def _check_exposed(
        self, name: str, port: int, service_name: str, service: Mapping[str, Any]
    ) -> None:
        """Refuse a port that neither the image nor the file exposes, unless they expose none."""
        numbers = exposed.list_ports(service)
        if service_name in self._template.replaced:
            image = self.order.images[self._template.replaced[service_name]]
            for kind in ("exposed", "udp"):
                numbers += image.handle.get(kind, "").split()
        elif found := bases.find_local(self._engine, str(service.get("image"))):
            for protocol in ("tcp", "udp"):
                numbers += bases.list_exposed(found["Config"], protocol)
        is_range = any("-" in one for one in numbers)
        if numbers and not is_range and str(port) not in numbers:
            known = sorted(set(numbers), key=int)
            raise LaunchError(
                describe_unexposed(
                    self._template.name,
                    name,
                    port,
                    service_name,
                    known,
                    remedy=f'`expose: ["{port}"]` to the service',
                )
            )


def _is_on_host(service: mounts.File) -> bool:
    return service.get("network_mode") == "host"


def _is_blamed(container: Mapping[str, Any], result: CommandResult) -> bool:
    """Whether the command failed because a container exited, even with status 0."""
    names = [container["Id"][:12], *(name.strip("/") for name in container["Names"])]
    lines = [line for line in result.progress.splitlines() if _ENDED.search(line)]
    return container["State"] == "exited" and any(name in str(lines) for name in names)
