"""What the container providers share: all about an environment except launching it.

An environment's containers are found by its label. Each is a part with a name: the name of its
service in a Compose file, or ``app`` if there are no services.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, ClassVar, Final

from pytest_ephemeral import labels
from pytest_ephemeral.errors import DestroyError, EphemeralError, UnavailableError
from pytest_ephemeral.models import Endpoint, Environment
from pytest_ephemeral.providers import grace
from pytest_ephemeral.providers.docker import (
    containers,
    endpoint,
    errors,
    identity,
    listening,
    logs,
    masking,
    ports,
    resources,
    rollback,
)
from pytest_ephemeral.providers.docker.engine import Engine, EngineError
from pytest_ephemeral.providers.docker.logs import Mark
from pytest_ephemeral.providers.docker.masking import Masking
from pytest_ephemeral.providers.protocol import Owned, Status

#: The name of the only part of an environment without services.
APP: Final = "app"

#: In a handle: the part that commands run in, and the parts that have endpoints.
MAIN, SERVING = resources.COMPLETE, "serving"

_SERVICE: Final = "com.docker.compose.service"


class ContainerEnvironments:
    """The parts of ``Provider`` that are the same for all environments of containers."""

    name: ClassVar[str]
    forwards_ports: ClassVar[bool] = True

    def preflight(self, *_: object) -> None:
        """Check that an engine answers."""
        self.reach()

    def reach(self) -> None:
        """Check that an engine answers, and look up its id in the background.

        Raises:
            UnavailableError: No engine answers; the message lists what was tried.
        """
        try:
            engine = endpoint.find()
            engine.ping()
            identity.look_up_early(engine)
        except EngineError as error:
            raise UnavailableError(
                f"the container engine gave an invalid answer: {error}"
            ) from None

    def contact(self) -> None:
        """See ``SupportsEarlyContact``."""
        identity.contact()

    def status(self, environment: Environment) -> Status:
        """The state of its parts. A part without endpoints may exit with status 0, as jobs do.

        Raises:
            EphemeralError: The engine does not answer, or is another one: the state is unknown.
        """
        with _reach(environment) as engine:
            found = resources.containers(engine, environment.id)
            ended = [_exit_reason(engine, one, environment) for one in found]
        missing = _serving(environment) - {part_of(one) for one in found}
        if not found or missing:
            return Status("gone", f"{', '.join(sorted(missing))} is not there" if found else "")
        reasons = "; ".join(text for text in ended if text)
        return Status("exited", reasons) if reasons else Status("running", _notes(found))

    def logs(
        self,
        environment: Environment,
        *,
        since: str | None = None,
        until: str | None = None,
        tail: int | None = None,
    ) -> str:
        """The output of its parts in order of time; with several, each line has its part's name."""
        first, last = _marks(since), _marks(until)
        lines: list[tuple[int, str]] = []
        with _reach(environment) as engine:
            parts = _parts(engine, environment)
            masked = load_masking(engine, environment, parts.values())
            for name, id in parts.items():
                text = logs.read(
                    engine,
                    id,
                    masked,
                    since=first.get(name),
                    until=None if until is None else last.get(name, logs.BEGINNING),
                    tail=tail,
                )
                mark = f"{name} | " if len(parts) > 1 else ""
                lines += [(when, mark + line) for when, line in text]
        lines.sort(key=lambda line: line[0])
        if tail is not None:
            lines = lines[-tail:] if tail > 0 else []
        if len(parts) == 1:
            return "".join(line for _, line in lines)
        return "".join(line if line.endswith("\n") else f"{line}\n" for _, line in lines)

    def log_mark(self, environment: Environment) -> str:
        """The time of each part's last line, by the engine's clock, as JSON."""
        with _reach(environment) as engine:
            parts = _parts(engine, environment)
            return json.dumps({name: str(logs.mark_end(engine, id)) for name, id in parts.items()})

    def log_files(self, environment: Environment) -> Mapping[str, str]:
        """The output of each part, by its name."""
        with _reach(environment) as engine:
            parts = _parts(engine, environment)
            masked = load_masking(engine, environment, parts.values())
            return {
                name: "".join(line for _, line in logs.read(engine, id, masked))
                for name, id in parts.items()
            }

    def run(
        self, environment: Environment, argv: Sequence[str], *, timeout: float | None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the main part."""
        with _reach(environment) as engine:
            return containers.run(engine, _main(engine, environment), argv, timeout=timeout)

    def hint(self, environment: Environment) -> str:
        """Where its parts listen, if not on the published ports."""
        try:
            with _reach(environment) as engine:
                parts = _parts(engine, environment)
                hints = (
                    listening.describe_listeners(engine, id)
                    for name, id in parts.items()
                    if name in _serving(environment)
                )
                return "; ".join(hint for hint in hints if hint)
        except (EphemeralError, TimeoutError, subprocess.TimeoutExpired):
            return ""

    def extend(self, environment: Environment, expires_at: datetime | None) -> None:
        """Record the new expiry in the engine, by a label."""
        expires = labels.NEVER if expires_at is None else expires_at.isoformat(timespec="seconds")
        with _reach(environment) as engine:
            _parts(engine, environment)
            resources.extend(engine, environment, self.name, expires)

    def keep(self, environment: Environment) -> None:
        """Check that its containers exist: nothing else is needed to keep them."""
        with _reach(environment) as engine:
            _parts(engine, environment)

    def pending_health(self, environment: Environment) -> str:
        """The health checks that have not passed, and the ports that are not published yet.

        A container that restarts until its database is up has no published port in between.
        Another program may use the port then, so it is not probed.
        """
        with _reach(environment) as engine:
            found = resources.containers(engine, environment.id)
            waiting = [text for one in found if (text := _pending_check(engine, environment, one))]
        serving = [one for one in found if part_of(one) in _serving(environment)]
        stopped = [part_of(one) for one in serving if one["State"] != "running"]
        unpublished = [
            set(ports.list_unpublished(one, environment.endpoints.values())) for one in serving
        ]
        absent = set.intersection(*unpublished) if unpublished and not stopped else set()
        return "; ".join(
            [
                *([f"health checks: {', '.join(waiting)}"] if waiting else []),
                *(f"{part} is being restarted" for part in stopped),
                *(f"port {port} is not published" for port in sorted(absent)),
            ]
        )

    def is_listening(self, environment: Environment, at: Endpoint, /) -> bool | None:
        """Whether the container behind an endpoint listens; see ``listening.is_listening``."""
        with _reach(environment) as engine:
            return listening.is_listening(engine, environment.id, at)

    def destroy(self, environment: Environment) -> None:
        """Remove its containers, networks and volumes; with a ``grace``, stop containers first."""
        self.destroy_in_stages(environment, lambda: None)

    def destroy_in_stages(self, environment: Environment, accepted: Callable[[], None]) -> None:
        """See ``SupportsStagedDestroy``; accepted once its containers are removed."""
        engine = identity.engine_of(environment.handle)
        resources.destroy(engine, environment, accepted, grace=grace.read(environment.handle))
        masking.forget(environment.id)
        rollback.forget(environment.id)

    def clock(self, environment: Environment) -> datetime:
        """The time on the engine's machine."""
        with _reach(environment) as engine:
            return engine.ping()

    def list_owned(self) -> Iterator[Owned]:
        """All containers, networks and volumes of this provider, by environment."""
        yield from resources.list_owned(endpoint.find(), self.name)

    def sweep(self, owned: Owned) -> None:
        """Remove all resources of one environment."""
        with name_failures(owned):
            resources.remove(endpoint.find(), owned.id)


@contextmanager
def name_failures(owned: Owned) -> Iterator[None]:
    """Turn errors into ``DestroyError``, with the name of the environment."""
    try:
        yield
    except DestroyError:
        raise
    except (EphemeralError, TimeoutError) as error:
        raise DestroyError(f"{owned.id} could not be removed: {error}") from error


def load_masking(engine: Engine, environment: Environment, ids: Iterable[str]) -> Masking:
    """The masking of an environment's secrets in its logs.

    Args:
        engine: The environment's engine.
        environment: The environment.
        ids: The ids of its containers.

    Raises:
        EngineError: A container is gone.
    """
    configs = (containers.inspect(engine, id)["Config"] for id in ids)
    return Masking.of(configs, environment.id)


def part_of(container: Mapping[str, Any]) -> str:
    """The name of a container's part; further containers of a service have a number."""
    found = container.get("Labels") or {}
    if found.get(resources.PROVIDER) == "docker":
        return APP  # its image may have labels of Compose, which say nothing about the container
    number = found.get("com.docker.compose.container-number", "1")
    name = re.sub(r"^\.|[^A-Za-z0-9_.-]", "_", f"{found.get(_SERVICE, APP)}")
    return name if number == "1" else f"{name}-{number}"


def _parts(engine: Engine, environment: Environment) -> dict[str, str]:
    """The ids of an environment's containers, by the names of their parts."""
    found = {part_of(one): one["Id"] for one in resources.containers(engine, environment.id)}
    if not found:
        raise EphemeralError(f"{environment.id} is gone: it has no containers")
    return dict(sorted(found.items()))


def _main(engine: Engine, environment: Environment) -> str:
    parts = _parts(engine, environment)
    main = environment.handle.get(MAIN, APP)
    if main not in parts:
        raise EphemeralError(f"{environment.id} has no container {main} any more")
    return parts[main]


def _serving(environment: Environment) -> set[str]:
    return set(environment.handle.get(SERVING, "").split())


def _exit_reason(engine: Engine, container: Mapping[str, Any], environment: Environment) -> str:
    """Why a part has ended; empty if it runs, or was a job that has succeeded."""
    # Inspect each: an engine with a full disk lists exited containers as running.
    found = containers.inspect(engine, container["Id"])
    if found["State"]["Status"] not in {"exited", "dead"}:
        return ""
    part = part_of(container)
    if found["State"]["ExitCode"] == 0 and part not in _serving(environment):
        return ""
    notes = containers.describe_architecture(engine, found) + errors.describe_full_disk(engine)
    return f"{part} {containers.exit_reason(found['State'])}{notes}"


def _pending_check(engine: Engine, environment: Environment, container: Mapping[str, Any]) -> str:
    """The state of a container's health check; empty if it has none, or it has passed."""
    if "(unhealthy)" in container["Status"]:
        output = containers.health_output(containers.inspect(engine, container["Id"]))
        masked = load_masking(engine, environment, [container["Id"]])
        return f"{part_of(container)} is unhealthy, and its health check says: {masked(output)}"
    if "(health: starting)" in container["Status"] or "(starting)" in container["Status"]:
        return f"{part_of(container)} is starting"
    return ""


def _notes(found: Sequence[Mapping[str, Any]]) -> str:
    """The parts that have not ended, but are paused, restarting or unhealthy."""
    states = {"paused": "is paused", "restarting": "is being restarted"}
    notes = [f"{part_of(one)} {states[one['State']]}" for one in found if one["State"] in states]
    notes += [f"{part_of(one)} is unhealthy" for one in found if "(unhealthy)" in one["Status"]]
    return "; ".join(notes)


def _marks(text: str | None) -> dict[str, Mark]:
    return {name: Mark.read(mark) for name, mark in json.loads(text or "{}").items()}


@contextmanager
def _reach(environment: Environment) -> Iterator[Engine]:
    """The environment's engine; errors of the engine get the environment's name."""
    engine = identity.engine_of(environment.handle)
    try:
        yield engine
    except EngineError as error:
        raise EphemeralError(f"{environment.id}: {error}") from error
    except TimeoutError as error:
        where = environment.handle.get(identity.ENGINE, "")
        raise EphemeralError(
            f"{environment.id}: the container engine at {where} gives no answer"
        ) from error
