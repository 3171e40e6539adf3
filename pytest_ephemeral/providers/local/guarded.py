"""What environments under a guard have in common, whatever it is that the guard has started."""

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

#: The guards of environments that this process has brought up. They live as long as they are
#: held, and providers are made anew wherever one is needed.
held: dict[str, guard.Guard] = {}


class GuardedEnvironments:
    """The part of a provider that acts on environments through their guards; see ``Provider``.

    Attributes:
        folder_type: The folders of its environments.
    """

    folder_type: ClassVar[type[Folder]] = Folder

    def clock(self, environment: Environment) -> datetime:
        """The guard's, which does not change when this machine's clock is set."""
        told = client.status(self.folder_type.of_environment(environment).control)
        return _clock(told) or datetime.now(UTC)

    def extend(self, environment: Environment, expires_at: datetime | None) -> None:
        """The guard's own clock is the only one."""
        client.extend(
            self.folder_type.of_environment(environment).control,
            None if expires_at is None else expires_at.timestamp(),
        )

    def keep(self, environment: Environment) -> None:
        """The guard looks at its owner no more."""
        client.keep(self.folder_type.of_environment(environment).control)
        if mine := held.pop(environment.id, None):
            mine.let_go()

    def destroy(self, environment: Environment) -> None:
        """The guard does it; where there is none (any more), what carries its marks is killed."""
        place = self.folder_type.of_environment(environment)
        mine = held.pop(environment.id, None)
        here = machine.is_here(environment.owner)
        removal.destroy(place, mine, here=here, handle=environment.handle)

    def list_owned(self) -> Iterator[Owned]:
        """Every folder here, as it leads to an environment until nothing of that is left."""
        for place in self.folder_type.every():
            id, known, seen_at = place.path.name, place.labels(), None
            with suppress(EphemeralError):
                told = client.status(place.control)
                known[labels.EXPIRES] = _format_expiry(told["expires_at"])
                seen_at = _clock(told)
            yield Owned(
                id=id,
                labels=known,
                detail=str(place.path),
                abandoned=place.is_abandoned(),
                seen_at=seen_at,
            )

    def sweep(self, owned: Owned) -> None:
        """Its folder is all that is needed to destroy it."""
        place = self.folder_type.of(owned.id)
        place.require_ours()
        removal.destroy(place, held.pop(owned.id, None), here=True)


def _clock(told: Mapping[str, Any]) -> datetime | None:
    """What time it is by a guard's own clock, which nobody can set; None if it never expires."""
    if told["expires_at"] is None:
        return None
    return datetime.fromtimestamp(told["expires_at"] - told["expires_in"], UTC)


def _format_expiry(expires_at: float | None) -> str:
    """An expiry as ``labels.for_environment`` writes it."""
    if expires_at is None:
        return labels.NEVER
    return datetime.fromtimestamp(expires_at, UTC).isoformat(timespec="seconds")
