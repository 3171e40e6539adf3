"""Environments for tests, as the ledger has them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from pytest_ephemeral import labels, machine
from pytest_ephemeral.models import Environment


def make_environment(
    id: str = "staging-7f3k2q", *, ttl: float | None = 3600, **changes: Any
) -> Environment:
    """An environment of this process, of a template on the local provider.

    Args:
        id: Begins with the template's name.
        ttl: Seconds until it expires; None for never.
        changes: Further fields of the environment.
    """
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "template": id.rpartition("-")[0],
        "provider": "local",
        "created_at": now,
        "expires_at": None if ttl is None else now + timedelta(seconds=ttl),
        "owner": machine.this_owner("run"),
        "labels": {labels.ID: id},
    }
    return Environment(id=id, **values | changes)
