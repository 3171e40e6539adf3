"""What the providers with guards share: local and qemu."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, ClassVar

from pytest_ephemeral import labels, machine
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.local import client, guard, removal
from pytest_ephemeral.providers.local.folder import Folder
from pytest_ephemeral.providers.protocol import Owned

#: The guards that this process has started, by environment. A guard ends when its object is
#: collected, and there are several provider objects, so they are kept here.
held: dict[str, guard.Guard] = {}


class GuardedEnvironments:
    """The part of a provider that acts on environments through their guards; see ``Provider``.

    Attributes:
        folder_type: The type of its environments' folders.
    """

    folder_type: ClassVar[type[Folder]] = Folder

    def clock(self, environment: Environment) -> datetime:
        """The time by the guard's clock, which does not change when the machine's clock is set."""
        status = client.status(self.folder_type.of_environment(environment).control)
        return _clock(status) or datetime.now(UTC)

    def extend(self, environment: Environment, expires_at: datetime | None) -> None:
        """Change the expiry in the guard, which is the only place that has it."""
        client.extend(
            self.folder_type.of_environment(environment).control,
            None if expires_at is None else expires_at.timestamp(),
        )

    def keep(self, environment: Environment) -> None:
        """Make the guard outlive its owner."""
        client.keep(self.folder_type.of_environment(environment).control)
        if mine := held.pop(environment.id, None):
            mine.detach()

    def destroy(self, environment: Environment) -> None:
        """End the guard with its processes; without a guard, kill the processes by their marks."""
        place = self.folder_type.of_environment(environment)
        mine = held.pop(environment.id, None)
        here = machine.is_here(environment.owner)
        removal.destroy(place, mine, here=here, handle=environment.handle)

    def list_owned(self) -> Iterator[Owned]:
        """All environments with a folder in this state directory."""
        for place in self.folder_type.every():
            id, known, seen_at = place.path.name, place.labels(), None
            with suppress(EphemeralError):
                status = client.status(place.control)
                known[labels.EXPIRES] = _format_expiry(status["expires_at"])
                seen_at = _clock(status)
            yield Owned(
                id=id,
                labels=known,
                detail=str(place.path),
                abandoned=place.is_abandoned(),
                seen_at=seen_at,
            )

    def sweep(self, owned: Owned) -> None:
        """Destroy an environment by its folder alone."""
        place = self.folder_type.of(owned.id)
        place.require_ours()
        removal.destroy(place, held.pop(owned.id, None), here=True)


def _clock(status: Mapping[str, Any]) -> datetime | None:
    """The time by a guard's own clock, from its status; None if the environment never expires."""
    if status["expires_at"] is None:
        return None
    return datetime.fromtimestamp(status["expires_at"] - status["expires_in"], UTC)


def _format_expiry(expires_at: float | None) -> str:
    """An expiry in the form of ``labels.for_environment``."""
    if expires_at is None:
        return labels.NEVER
    return datetime.fromtimestamp(expires_at, UTC).isoformat(timespec="seconds")
