"""The labels that every resource has from its creation on.

They name the resource's owner, its record in the ledger, and its expiry. A resource without these
labels is never changed or removed.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

PREFIX: Final = "pytest-ephemeral."
ID: Final = PREFIX + "id"
TEMPLATE: Final = PREFIX + "template"
RUN: Final = PREFIX + "run"
OWNER: Final = PREFIX + "owner"
EXPIRES: Final = PREFIX + "expires-at"
IMAGE: Final = PREFIX + "image"

#: Processes have no labels: this environment variable of theirs has the environment's id.
ENVIRONMENT_VARIABLE: Final = "PYTEST_EPHEMERAL_ENVIRONMENT"

NEVER: Final = "never"


def for_environment(
    *, id: str, template: str, run: str, owner: str, expires_at: datetime | None, image: str
) -> dict[str, str]:
    """The labels of one environment.

    Args:
        id: The environment's id.
        template: The template's name.
        run: The id of the run (one pytest session, one command) that brings it up.
        owner: The owner process, as ``user@host:pid``.
        expires_at: The expiry, in UTC; None if it never expires (production).
        image: The image's key; empty if there is none.
    """
    expires = NEVER if expires_at is None else expires_at.isoformat(timespec="seconds")
    return {
        ID: id,
        TEMPLATE: template,
        RUN: run,
        OWNER: owner,
        EXPIRES: expires,
        IMAGE: image,
    }
