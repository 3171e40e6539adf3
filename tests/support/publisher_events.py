"""Environments and events to publish, with plain and with hostile values."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pytest_ephemeral.models import Announcement, Environment, ImageReference, Owner
from pytest_ephemeral.publishers.events import EnvironmentEvent

URL = "http://127.4.9.3:8080/"

#: A URL with the special characters of all CI servers, shells and markup languages.
HOSTILE = "http://x/?a=%0A&b='\"`$(id)`\\|[y](z);,:!<b>*_~\r\n::error::no\n##vso[x]é\U0001f600"


def environment(template: str = "staging", id: str = "", **changes: Any) -> Environment:
    values: dict[str, Any] = {
        "id": id or f"{template}-7f3k2q",
        "template": template,
        "provider": "local",
        "image": ImageReference(
            name="shop", key="sha256:" + "ab" * 32, reference="/prefix", artifact=None
        ),
        "url": URL,
        "created_at": datetime(2026, 5, 4, 10, 0, tzinfo=UTC),
        "expires_at": datetime(2026, 5, 4, 12, 0, tzinfo=UTC),
        "owner": Owner(user="anna", host="box", boot="b", pid=12, started="1", run="r"),
        **changes,
    }
    return Environment(**values)


def event(
    outcome: Announcement = "up",
    url: str = URL,
    template: str = "staging",
    id: str = "",
    **changes: Any,
) -> EnvironmentEvent:
    return EnvironmentEvent(environment(template, id, url=url, **changes), url, outcome)
