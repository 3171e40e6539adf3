"""Compose files and services, as they are changed for a launch."""

from __future__ import annotations

from typing import Any

from pytest_ephemeral.models import Endpoint
from pytest_ephemeral.providers.compose import project
from pytest_ephemeral.providers.compose.command import parse
from pytest_ephemeral.providers.compose.mounts import File
from pytest_ephemeral.providers.compose.tables import ComposeTemplate
from pytest_ephemeral.providers.docker.ports import Published

#: The engine's id of the baked image.
IMAGE = "sha256:1"


def template(**keys: Any) -> ComposeTemplate:
    given = {
        "service": "web",
        "port": 80,
        "replaced": {"web": "shop"},
        "profiles": ["full"],
        "allow_external": True,
        **keys,
    }
    return ComposeTemplate(name="t", file="compose.yaml", **given)


def published_at(first: int, file: File | None = None, **keys: Any) -> Published:
    """The published ports, if the engine's free ports are counted up from the first one."""
    asked = template(**keys)
    places = asked.service_ports()
    counts = {name: project.replicas(file or {}, asked, at.service) for name, at in places.items()}
    inside = {name: at.port for name, at in places.items()}
    endpoints = {
        name: Endpoint(host="127.0.0.1", port=first + number) for number, name in enumerate(inside)
    }
    return Published("127.0.0.1", endpoints, inside, counts)


# -- changes to a file -----------------------------------------------------------------------------


def changed(text: str, **keys: Any) -> dict[str, Any]:
    """The content of a Compose file, given as text, after its preparation for a launch."""
    keys = {"replaced": {}, "profiles": [], **keys}
    return project.prepare(
        parse(text),
        template(**keys),
        {"shop": IMAGE},
        labels={},
        secrets=[],
        published=published_at(49160, parse(text), **keys),
    )
