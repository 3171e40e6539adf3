"""What every resource is tagged with, from its creation on.

Whoever finds a resource by these can tell whose it is, which record of the ledger is its, and
when it may be removed. A resource without them is never touched.
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

#: Where there are no labels (a process), its environment carries the id under this name.
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
        owner: The owning process, as ``user@host:pid``.
        expires_at: When it may be removed; None when never (production).
        image: The image's key, or empty where there is none.
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
