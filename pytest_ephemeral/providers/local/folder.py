"""The folder of an environment: what leads to it as long as anything of it is there.

It is made before anything else and removed after everything else. Whoever starts the environment
holds its lock, and then the guard: a folder that can be locked belongs to nobody any more.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from pytest_ephemeral import machine
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.local.supervisor.files import remove_tree

#: Seconds after which a folder without labels is no longer just being made.
_BEING_MADE = 5.0


class Folder(msgspec.Struct, frozen=True):
    """The folder of one environment."""

    path: Path

    @classmethod
    def of(cls, id: str) -> Folder:
        """The folder of an environment of this state directory.

        Raises:
            EphemeralError: It is no id, but a path.
        """
        if Path(id).name != id:
            raise EphemeralError(f"{id!r} is not the id of an environment")
        return cls(_all() / id)

    @classmethod
    def recorded(cls, environment: Environment) -> Folder:
        """The folder that an environment was launched with, also from another state directory."""
        derived = cls.of(environment.id)
        recorded = Path(environment.handle.get("folder", derived.path))
        # It will be removed with all that is in it: a record that was tampered with names another.
        fits = recorded.name == environment.id and recorded.parent.name == _all().name
        return cls(recorded) if fits else derived

    @property
    def state(self) -> Path:
        """Where its processes start, and write."""
        return self.path / "state"

    @property
    def temporary(self) -> Path:
        """Its processes' ``$TMPDIR``."""
        return self.path / "tmp"

    @property
    def logs(self) -> Path:
        """What they print."""
        return self.path / "logs"

    @property
    def _labels(self) -> Path:
        return self.path / "labels.json"

    def make(self, labels: Mapping[str, str]) -> int:
        """Make it, and take its lock.

        Returns:
            The lock: an open descriptor.

        Raises:
            FileExistsError: It is there already.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700)
        lock = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for folder in (self.state, self.temporary, self.logs):
                folder.mkdir(mode=0o700)
            self._labels.write_text(json.dumps(dict(labels)))
        except BaseException:
            os.close(lock)
            raise
        return lock

    def labels(self) -> dict[str, str]:
        """What it was made with; empty while it is being made, or removed."""
        try:
            found = json.loads(self._labels.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def is_abandoned(self) -> bool:
        """Whether neither the process that made it nor its guard is there any more."""
        try:
            lock = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            age = time.time() - self.path.stat().st_mtime
        except OSError:
            return False
        finally:
            os.close(lock)
        return self._labels.exists() or age > _BEING_MADE

    def remove(self) -> bool:
        """Remove it, as far as this user can; whether it is gone."""
        remove_tree(str(self.path))
        return not self.path.exists()


def every() -> Iterator[Folder]:
    """The folders of this state directory."""
    if _all().is_dir():
        yield from (Folder(path) for path in sorted(_all().iterdir()) if path.is_dir())


def _all() -> Path:
    return machine.state_directory() / "environments"
