"""Start the containers of an environment again, each after its dependencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.providers import waiting
from pytest_ephemeral.providers.docker import containers
from pytest_ephemeral.providers.docker.engine import Engine

_SERVICE: Final = "com.docker.compose.service"
#: Compose 2 writes ``db:service_healthy:false,cache:service_started:false``; Compose 1 nothing.
_DEPENDS_ON: Final = "com.docker.compose.depends_on"

#: Seconds that a service may take to become healthy.
_PATIENCE: Final = 120.0
_PAUSE: Final = 0.05


def start_in_order(
    engine: Engine,
    parts: Sequence[Mapping[str, Any]],
    made: Mapping[str, str] | None = None,
) -> None:
    """Start containers in the order of their first start.

    Args:
        engine: The containers' engine.
        parts: The engine's descriptions of the containers, from when they ran.
        made: The ids of containers that were created again, by name.

    Raises:
        EphemeralError: One can't be started, or a dependency does not become healthy.
    """
    started: dict[str, str] = {}
    for part in sorted(parts, key=lambda one: str(one["State"]["StartedAt"])):
        labels = part["Config"].get("Labels") or {}
        for need in str(labels.get(_DEPENDS_ON, "")).split(","):
            service, _, condition = need.partition(":")
            if condition.startswith("service_healthy") and service in started:
                _wait_until_healthy(engine, service, started[service])
        id = (made or {}).get(str(part["Name"]).lstrip("/"), str(part["Id"]))
        engine.call("POST", f"/containers/{id}/start")
        started[str(labels.get(_SERVICE, id))] = id


def _wait_until_healthy(engine: Engine, service: str, container: str) -> None:
    def is_healthy() -> bool:
        health = containers.inspect(engine, container)["State"].get("Health") or {}
        return health.get("Status") == "healthy"

    if not waiting.wait_until(is_healthy, within=_PATIENCE, every=_PAUSE):
        raise EphemeralError(f"the service {service!r} did not become healthy in {_PATIENCE:g} s")
