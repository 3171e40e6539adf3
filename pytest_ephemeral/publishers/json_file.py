"""One JSON file with all environments, always up to date."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from pytest_ephemeral.models import to_builtins
from pytest_ephemeral.publishers.channels import Channel, Host, ListFile
from pytest_ephemeral.publishers.events import EnvironmentEvent, variables

FILE: Final = "environments.json"
VERSION: Final = 1


def document(events: Iterable[EnvironmentEvent]) -> str:
    """The JSON document with all environments of a run, and the variables for later steps.

    It also has environments that are up, with their owners and expiries, because the file can be
    read during the run.
    """
    last = list(events)
    ended = [event for event in last if event.outcome != "up"]
    values = {
        "version": VERSION,
        "environments": [describe(event) for event in last],
        "variables": variables(ended),
    }
    return json.dumps(values, indent=2) + "\n"


def describe(event: EnvironmentEvent) -> dict[str, Any]:
    """One environment as JSON values, without secrets."""
    environment = event.environment
    describe: dict[str, Any] = to_builtins(
        {
            "id": environment.id,
            "template": environment.template,
            "provider": environment.provider,
            "image": environment.image,
            "images": environment.images,
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
    """The JSON file, on every CI server."""
    yield "file", ListFile(host.folder / FILE, document)
