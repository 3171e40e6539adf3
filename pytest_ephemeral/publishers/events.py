"""The events that publishers receive, and the variables for later steps."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final
from urllib.parse import urlsplit

import msgspec

from pytest_ephemeral.masking import mask
from pytest_ephemeral.models import Announcement, Environment

#: The names of variables, outputs, parameters and meta-data, which are the same in every CI. Each
#: template also has its own, such as EPHEMERAL_STAGING_URL and EPHEMERAL_STAGING_URL_EXPIRED.
URL: Final = "EPHEMERAL_URL"
URL_EXPIRED: Final = "EPHEMERAL_URL_EXPIRED"
ENVIRONMENT: Final = "EPHEMERAL_ENVIRONMENT"
TEMPLATE: Final = "EPHEMERAL_TEMPLATE"
IMAGE: Final = "EPHEMERAL_IMAGE"


class EnvironmentEvent(msgspec.Struct, frozen=True):
    """An environment has come up, or its run no longer uses it.

    Attributes:
        environment: The environment.
        url: Its URL, without user, password and secrets.
        outcome: ``up``, or how it ended.
    """

    environment: Environment
    url: str
    outcome: Announcement = "up"

    @property
    def is_up(self) -> bool:
        """Whether the environment is up, so that the URL works."""
        return self.outcome in {"up", "kept"}

    @property
    def image(self) -> str:
        """The key of the environment's image; empty if it has none."""
        return self.environment.image.key if self.environment.image else ""

    @property
    def until(self) -> str:
        """The environment's expiry, for people; empty if it has none."""
        expires_at = self.environment.expires_at
        return "" if expires_at is None else f"{expires_at:%Y-%m-%d %H:%M} UTC"

    @property
    def fate(self) -> str:
        """How the environment ended, for people."""
        words = {
            "died": "stopped by itself",
            "destroying": "is being destroyed",
            "leaked": "could not be destroyed",
        }
        return words.get(self.outcome, "is gone")

    def sentence(self) -> str:
        """The event in one line, for people."""
        label = f"{self.environment.template} ({self.environment.id})"
        if not self.is_up:
            return f"{label} {self.fate}; it was {self.url}"
        until = f", until {self.until} at the latest" if self.until else ""
        return f"{label} is up: {self.url}{until}"


def variables(events: Iterable[EnvironmentEvent]) -> dict[str, str]:
    """The variables for later steps.

    They describe the first environment that is still up, or else the first one. The URL of an
    environment that is gone is only in variables whose name ends in ``_EXPIRED``.

    Args:
        events: The last event of each environment, in the order in which they came up.

    Returns:
        Values by name. A value may be empty, to replace one that was handed over before.
    """
    last = list(events)
    if not last:
        return {}
    first = _first(last)
    found = {
        URL: first.url if first.is_up else "",
        URL_EXPIRED: "" if first.is_up else first.url,
        ENVIRONMENT: first.environment.id,
        TEMPLATE: first.environment.template,
        IMAGE: first.image,
    }
    for template in dict.fromkeys(event.environment.template for event in last):
        own = _first([event for event in last if event.environment.template == template])
        name = f"EPHEMERAL_{template.upper().replace('-', '_')}_URL"
        found[name] = own.url if own.is_up else ""
        found[f"{name}_EXPIRED"] = "" if own.is_up else own.url
    return found


def clean(url: str, secrets: Collection[str]) -> str:
    """Remove user, password and secrets from a URL.

    GitHub drops a job output that contains a registered secret, so secrets are masked here.
    """
    authority = urlsplit(url).netloc
    if "@" in authority:
        url = url.replace(authority, authority.rpartition("@")[2], 1)
    return mask(url, secrets)


def _first(events: list[EnvironmentEvent]) -> EnvironmentEvent:
    return next((event for event in events if event.is_up), events[0])
