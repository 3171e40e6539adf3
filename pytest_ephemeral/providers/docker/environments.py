"""What environments of containers have in common, whoever made them: everything but launching.

An environment's containers are found by its label. Each is a part with a name: the service's in a
Compose file, ``app`` where there is only one.
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
from pytest_ephemeral.errors import DestroyError, ElsewhereError, EphemeralError, UnavailableError
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

#: The part of an environment that has no services.
APP: Final = "app"

#: In a handle: the part that commands run in, and those that have endpoints.
MAIN, SERVING = resources.COMPLETE, "serving"

_SERVICE: Final = "com.docker.compose.service"


class ContainerEnvironments:
    """Environments that an engine runs; see ``Provider`` for what is promised."""

    name: ClassVar[str]
    forwards_ports: ClassVar[bool] = True

    def preflight(self, *_: object) -> None:
        """Whether an engine answers."""
        self.reach()

    def reach(self) -> None:
        """See whether an engine answers; which one it is, is asked meanwhile.

        Raises:
            UnavailableError: None does; says what was tried.
        """
        try:
            engine = endpoint.find()
            engine.ping()
            identity.ask_early(engine)
        except EngineError as error:
            raise UnavailableError(
                f"the container engine gave an invalid answer: {error}"
            ) from None

    def contact(self) -> None:
        """See ``SupportsEarlyContact``."""
        identity.contact()

    def status(self, environment: Environment) -> Status:
        """How its parts are. A part without endpoints may end with status 0: it was a job."""
        try:
            engine = identity.engine_of(environment.handle)
            found = resources.containers(engine, environment.id)
            ended = [_ending(engine, one, environment) for one in found]
        except ElsewhereError:
            raise
        except (EphemeralError, TimeoutError) as error:
            return Status("gone", _reason(environment, error))
        missing = _serving(environment) - {part_of(one) for one in found}
        if not found or missing:
            return Status("gone", f"{', '.join(sorted(missing))} is not there" if found else "")
        said = "; ".join(text for text in ended if text)
        return Status("exited", said) if said else Status("running", _odd(found))

    def logs(
        self,
        environment: Environment,
        *,
        since: str | None = None,
        until: str | None = None,
        tail: int | None = None,
    ) -> str:
        """What its parts have printed, in the order of time; of several, each line says whose."""
        first, last = _marks(since), _marks(until)
        lines: list[tuple[int, str]] = []
        with _about(environment) as engine:
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
        """When each part has printed its last line, by the engine's clock."""
        with _about(environment) as engine:
            parts = _parts(engine, environment)
            return json.dumps({name: str(logs.mark_end(engine, id)) for name, id in parts.items()})

    def log_files(self, environment: Environment) -> Mapping[str, str]:
        """What each part has printed."""
        with _about(environment) as engine:
            parts = _parts(engine, environment)
            masked = load_masking(engine, environment, parts.values())
            return {
                name: "".join(line for _, line in logs.read(engine, id, masked))
                for name, id in parts.items()
            }

    def run(
        self, environment: Environment, argv: Sequence[str], *, timeout: float | None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in its main part."""
        with _about(environment) as engine:
            return containers.run(engine, _main(engine, environment), argv, timeout=timeout)

    def hint(self, environment: Environment) -> str:
        """Where it listens instead of where it should."""
        try:
            with _about(environment) as engine:
                parts = _parts(engine, environment)
                hints = (
                    containers.describe_listeners(engine, id)
                    for name, id in parts.items()
                    if name in _serving(environment)
                )
                return "; ".join(hint for hint in hints if hint)
        except (EphemeralError, TimeoutError, subprocess.TimeoutExpired):
            return ""

    def extend(self, environment: Environment, expires_at: datetime | None) -> None:
        """Note its new expiry on the engine."""
        expires = labels.NEVER if expires_at is None else expires_at.isoformat(timespec="seconds")
        with _about(environment) as engine:
            _parts(engine, environment)
            resources.extend(engine, environment, self.name, expires)

    def keep(self, environment: Environment) -> None:
        """Nothing to do: it is no process of the owner's, and the ledger says that it stays."""
        with _about(environment) as engine:
            _parts(engine, environment)

    def pending_health(self, environment: Environment) -> str:
        """Which of its health checks have not passed, and which of its ports are not there yet.

        A container that exits until its database is up has no port here while it is started again.
        Someone else may have it: what answers there is not asked before it is the container's.
        """
        with _about(environment) as engine:
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
        """Whether the container that an endpoint leads to listens in its own network."""
        with _about(environment) as engine:
            return listening.is_listening(engine, environment.id, at)

    def destroy(self, environment: Environment) -> None:
        """Remove its containers, networks and volumes; where there is a grace, stop them before."""
        self.destroy_in_stages(environment, lambda: None)

    def destroy_in_stages(self, environment: Environment, accepted: Callable[[], None]) -> None:
        """Its containers first: when they are gone, nothing of it runs."""
        engine = identity.engine_of(environment.handle)
        resources.destroy(engine, environment, accepted, grace=grace.read(environment.handle))
        masking.forget(environment.id)
        rollback.forget(environment.id)

    def clock(self, environment: Environment) -> datetime:
        """What time it is on the engine's machine."""
        with _about(environment) as engine:
            return engine.ping()

    def list_owned(self) -> Iterator[Owned]:
        """All containers, networks and volumes of this provider's, by environment."""
        yield from resources.list_owned(endpoint.find(), self.name)

    def sweep(self, owned: Owned) -> None:
        """Remove all of one."""
        with name_failures(owned):
            resources.remove(endpoint.find(), owned.id)


@contextmanager
def name_failures(owned: Owned) -> Iterator[None]:
    """Name the environment in the error of whatever is refused."""
    try:
        yield
    except DestroyError:
        raise
    except (EphemeralError, TimeoutError) as error:
        raise DestroyError(f"{owned.id} could not be removed: {error}") from error


def load_masking(engine: Engine, environment: Environment, ids: Iterable[str]) -> Masking:
    """What hides an environment's secrets.

    Args:
        engine: Where it runs.
        environment: Which.
        ids: Its containers'.

    Raises:
        EngineError: One of them is gone.
    """
    configs = (containers.inspect(engine, id)["Config"] for id in ids)
    return Masking.of(configs, environment.id)


def part_of(container: Mapping[str, Any]) -> str:
    """A container's name as a part; of several of one service, numbered from the second on."""
    found = container.get("Labels") or {}
    if found.get(resources.PROVIDER) == "docker":
        return APP  # its image may have Compose's labels, with whatever in them
    number = found.get("com.docker.compose.container-number", "1")
    name = re.sub(r"^\.|[^A-Za-z0-9_.-]", "_", f"{found.get(_SERVICE, APP)}")
    return name if number == "1" else f"{name}-{number}"


def _parts(engine: Engine, environment: Environment) -> dict[str, str]:
    """The ids of its containers by their parts' names."""
    found = {part_of(one): one["Id"] for one in resources.containers(engine, environment.id)}
    if not found:
        raise EphemeralError(f"{environment.id} is gone: none of its containers is there")
    return dict(sorted(found.items()))


def _main(engine: Engine, environment: Environment) -> str:
    parts = _parts(engine, environment)
    main = environment.handle.get(MAIN, APP)
    if main not in parts:
        raise EphemeralError(f"{environment.id} has no container {main} any more")
    return parts[main]


def _serving(environment: Environment) -> set[str]:
    return set(environment.handle.get(SERVING, "").split())


def _ending(engine: Engine, container: Mapping[str, Any], environment: Environment) -> str:
    """How a part has ended; empty for one that runs, or was to end."""
    # Each is asked itself: where its disk is full, an engine goes on to list it as running.
    found = containers.inspect(engine, container["Id"])
    if found["State"]["Status"] not in {"exited", "dead"}:
        return ""
    part = part_of(container)
    if found["State"]["ExitCode"] == 0 and part not in _serving(environment):
        return ""
    notes = containers.describe_architecture(engine, found) + errors.describe_full_disk(engine)
    return f"{part} {containers.exit_reason(found['State'])}{notes}"


def _pending_check(engine: Engine, environment: Environment, container: Mapping[str, Any]) -> str:
    """What a container's own health check has to say; empty where it has none or has passed."""
    if "(unhealthy)" in container["Status"]:
        said = containers.health_output(containers.inspect(engine, container["Id"]))
        masked = load_masking(engine, environment, [container["Id"]])
        return f"{part_of(container)} is unhealthy, and its health check says: {masked(said)}"
    if "(health: starting)" in container["Status"] or "(starting)" in container["Status"]:
        return f"{part_of(container)} is starting"
    return ""


def _odd(found: Sequence[Mapping[str, Any]]) -> str:
    """What is worth saying of parts that run."""
    states = {"paused": "is paused", "restarting": "is being restarted"}
    odd = [f"{part_of(one)} {states[one['State']]}" for one in found if one["State"] in states]
    odd += [f"{part_of(one)} is unhealthy" for one in found if "(unhealthy)" in one["Status"]]
    return "; ".join(odd)


def _marks(text: str | None) -> dict[str, Mark]:
    return {name: Mark.read(mark) for name, mark in json.loads(text or "{}").items()}


def _reason(environment: Environment, error: Exception) -> str:
    if isinstance(error, TimeoutError) and not isinstance(error, EphemeralError):
        where = environment.handle.get(identity.ENGINE, "")
        return f"the container engine at {where} gives no answer"
    return str(error)


@contextmanager
def _about(environment: Environment) -> Iterator[Engine]:
    """The environment's engine; whatever it refuses is said to be about this environment."""
    engine = identity.engine_of(environment.handle)
    try:
        yield engine
    except EngineError as error:
        raise EphemeralError(f"{environment.id}: {error}") from error
    except TimeoutError as error:
        raise EphemeralError(f"{environment.id}: {_reason(environment, error)}") from error
