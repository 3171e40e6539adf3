"""What publishers are told, and the names under which it is handed over."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final
from urllib.parse import urlsplit

import msgspec

from pytest_ephemeral import interpolation
from pytest_ephemeral.models import Announcement, Environment

#: The variables, outputs, parameters and keys of meta-data; the same in every CI. Each template
#: has its own URL besides, such as EPHEMERAL_STAGING_URL or EPHEMERAL_STAGING_URL_EXPIRED.
URL: Final = "EPHEMERAL_URL"
URL_EXPIRED: Final = "EPHEMERAL_URL_EXPIRED"
ENVIRONMENT: Final = "EPHEMERAL_ENVIRONMENT"
TEMPLATE: Final = "EPHEMERAL_TEMPLATE"
IMAGE: Final = "EPHEMERAL_IMAGE"


class Event(msgspec.Struct, frozen=True):
    """An environment is up, or its life with this run is over.

    Attributes:
        url: The environment's, without a password in it.
        outcome: ``up``, or what became of it.
    """

    environment: Environment
    url: str
    outcome: Announcement = "up"

    @property
    def is_up(self) -> bool:
        """Whether somebody who follows the URL finds something."""
        return self.outcome in {"up", "kept"}

    @property
    def image(self) -> str:
        """The key of the image it runs; empty where its template says so itself."""
        return self.environment.image.key if self.environment.image else ""

    @property
    def until(self) -> str:
        """When it will be over at the latest, for people."""
        expires_at = self.environment.expires_at
        return "" if expires_at is None else f"{expires_at:%Y-%m-%d %H:%M} UTC"

    @property
    def fate(self) -> str:
        """What became of it, for people, when it is not up any more."""
        said = {
            "died": "stopped by itself",
            "destroying": "is being destroyed",
            "leaked": "could not be destroyed",
        }
        return said.get(self.outcome, "is gone")

    def sentence(self) -> str:
        """All of it in one line, for people."""
        who = f"{self.environment.template} ({self.environment.id})"
        if not self.is_up:
            return f"{who} {self.fate}; it was {self.url}"
        until = f", until {self.until} at the latest" if self.until else ""
        return f"{who} is up: {self.url}{until}"


def variables(events: Iterable[Event]) -> dict[str, str]:
    """What is handed to the steps that come after.

    The first environment that is still up stands for all, or else the first of all. A URL that
    leads nowhere any more is only ever handed over under a name that says so.

    Args:
        events: The last of each environment, in the order in which they came up.

    Returns:
        By name; what there is none of is empty, so that it replaces what was handed over before.
    """
    told = list(events)
    if not told:
        return {}
    first = _first(told)
    found = {
        URL: first.url if first.is_up else "",
        URL_EXPIRED: "" if first.is_up else first.url,
        ENVIRONMENT: first.environment.id,
        TEMPLATE: first.environment.template,
        IMAGE: first.image,
    }
    for template in dict.fromkeys(event.environment.template for event in told):
        own = _first([event for event in told if event.environment.template == template])
        name = f"EPHEMERAL_{template.upper().replace('-', '_')}_URL"
        found[name] = own.url if own.is_up else ""
        found[f"{name}_EXPIRED"] = "" if own.is_up else own.url
    return found


def clean(url: str, secrets: Collection[str]) -> str:
    """A URL as it may be shown: no user and password, none of the secrets.

    GitHub drops a whole job output that holds a masked string, so a secret must not even be
    there for it to find.
    """
    authority = urlsplit(url).netloc
    if "@" in authority:
        url = url.replace(authority, authority.rpartition("@")[2], 1)
    return interpolation.mask(url, secrets)


def _first(events: list[Event]) -> Event:
    return next((event for event in events if event.is_up), events[0])
