"""Measure one container without pytest: the delay of readiness, and the time to destroy it."""

from __future__ import annotations

import http.client
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from pytest_ephemeral.environments import readiness
from pytest_ephemeral.models import Environment, Image
from pytest_ephemeral.providers.docker import DockerProvider, endpoint
from pytest_ephemeral.providers.docker.tables import DockerTemplate
from pytest_ephemeral.providers.protocol import Order
from pytest_ephemeral.tables import Ready
from pytest_ephemeral.testing.bench import make_order


def detection(reference: str, state: Path) -> tuple[float, float]:
    """Bring one container up, and destroy it.

    Args:
        reference: The image's id or name.
        state: The folder of the configuration.

    Returns:
        The seconds between the first response and its detection by readiness, and the seconds
        that the destruction took.
    """
    provider, order = DockerProvider(), _order(reference, state)
    try:
        environment = provider.launch(order)
        answered: list[float] = []
        looking = threading.Thread(target=_look, args=(environment, answered))
        looking.start()
        probes = readiness.probes_for(environment, order.template, provider, {})
        readiness.wait(environment, provider, probes, timeout=30, cancelled=threading.Event())
        noticed = time.perf_counter()
        looking.join()
    finally:
        started = time.perf_counter()
        provider.destroy(order.environment)
        destroyed = time.perf_counter() - started
    return noticed - answered[0], destroyed


def _look(environment: Environment, answered: list[float]) -> None:
    """Send requests without a pause until there is a response, and note its time."""
    endpoint = environment.endpoints["http"]
    while not answered:
        connection = http.client.HTTPConnection(endpoint.host, endpoint.port)
        try:
            connection.request("GET", "/")
            connection.getresponse()
            answered.append(time.perf_counter())
        except (OSError, http.client.HTTPException):
            time.sleep(0.0005)
        finally:
            connection.close()


def _order(reference: str, root: Path) -> Order:
    template = DockerTemplate(name="bench", image="bench", port=8080, ready=Ready(http="/"))
    digest = endpoint.find().call("GET", f"/images/{reference}/json")["Id"]
    image = Image(
        name="bench",
        key="",
        provider="docker",
        reference=reference,
        digest=digest,
        baked_at=datetime.now(UTC),
    )
    return make_order(template, image, lifetime=600.0, root=root)
