"""For whatever else there is: one JSON file, always as things are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from pytest_ephemeral.models import to_builtins
from pytest_ephemeral.publishers.channels import Channel, Host, ListFile
from pytest_ephemeral.publishers.events import Event, variables

FILE: Final = "environments.json"
VERSION: Final = 1


def document(events: Iterable[Event]) -> str:
    """All environments of a run, and the variables that other CIs get.

    Unlike them it tells of what merely runs, too: somebody else can read it meanwhile. It says
    who owns that and until when, for a reader who comes when the run is no more.
    """
    told = list(events)
    over = [event for event in told if event.outcome != "up"]
    values = {
        "version": VERSION,
        "environments": [describe(event) for event in told],
        "variables": variables(over),
    }
    return json.dumps(values, indent=2) + "\n"


def describe(event: Event) -> dict[str, Any]:
    """One environment: what may be told of it to anyone."""
    environment = event.environment
    describe: dict[str, Any] = to_builtins(
        {
            "id": environment.id,
            "template": environment.template,
            "provider": environment.provider,
            "image": environment.image,
            "state": event.outcome,
            "url": event.url if event.is_up else None,
            "expired_url": None if event.is_up else event.url,
            "owner": str(environment.owner),
            "created_at": environment.created_at,
            "expires_at": environment.expires_at,
        }
    )
    return describe


def channels(host: Host) -> Iterator[tuple[str, Channel]]:
    """A file in the workspace."""
    yield "file", ListFile(host.folder / FILE, document)
