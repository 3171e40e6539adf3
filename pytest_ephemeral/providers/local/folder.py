"""The folder of an environment: what leads to it as long as anything of it is there.

It is made before anything else and removed after everything else. Whoever starts the environment
holds its lock, and then the guard: a folder that can be locked belongs to nobody any more.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Self

import msgspec

from pytest_ephemeral import files, machine
from pytest_ephemeral.errors import EphemeralError, TamperedRecordError
from pytest_ephemeral.labels import ID
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.local.host import GuardAddress
from pytest_ephemeral.providers.local.supervisor.files import (
    ASIDE,
    LABELS,
    UNMARKED,
    remove_environment,
)

#: Seconds after which a folder is no longer just being made.
_BEING_MADE = 60.0


class Folder(msgspec.Struct, frozen=True):
    """The folder of one environment.

    Attributes:
        home: The folder of all of a provider's, in the state directory.
    """

    home: ClassVar[str] = "environments"

    path: Path

    @classmethod
    def of(cls, id: str) -> Self:
        """The folder of an environment of this state directory.

        Raises:
            EphemeralError: It is no id, but a path.
        """
        if Path(id).name != id:
            raise EphemeralError(f"{id!r} is not the id of an environment")
        return cls(machine.state_directory() / cls.home / id)

    @classmethod
    def of_environment(cls, environment: Environment) -> Self:
        """The folder that an environment was launched with, also from another state directory.

        Raises:
            TamperedRecordError: The record names a folder that is not this environment's.
        """
        derived = cls.of(environment.id)
        recorded = Path(environment.handle.get("folder", derived.path))
        if recorded.name != environment.id or recorded.parent.name != cls.home:
            raise TamperedRecordError(
                f"the record of {environment.id} names {recorded}, which can't be its folder: "
                "nothing was touched. Find out who wrote that, and remove the record"
            )
        cls(recorded).require_ours()
        return cls(recorded)

    def require_ours(self) -> None:
        """Make sure that a folder, if it is there, is that of the environment it is called like.

        Raises:
            TamperedRecordError: It is not, or it is another user's.
        """
        try:
            status = self.path.lstat()
        except FileNotFoundError:
            return
        except OSError as error:
            raise EphemeralError(f"{self.path} can't be inspected: {error.strerror}") from error
        own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
        if not own or self.labels().get(ID) != self.path.name:
            raise TamperedRecordError(
                f"{self.path} is not the folder of one of your environments (its labels.json "
                "does not name it): it was left alone. Look at it with "
                f"`ls -la {self.path}`, and remove the record that names it"
            )

    @classmethod
    def every(cls) -> Iterator[Self]:
        """Those of this state directory that are environments' of this user, and no others."""
        try:
            paths = sorted((machine.state_directory() / cls.home).iterdir())
        except FileNotFoundError:
            return
        for path in paths:
            with suppress(EphemeralError):
                folder = cls(path)
                folder.require_ours()
                if path.is_dir():
                    yield folder

    @property
    def control(self) -> GuardAddress:
        """Where its guard is asked."""
        return GuardAddress(self.path.name, self.path)

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
    def mark(self) -> Path:
        """What is mounted in the view of its processes; see ``view.protect``."""
        return self._labels

    @property
    def unmarked(self) -> Path:
        """There if nothing is mounted in the view of its processes."""
        return self.path / UNMARKED

    @property
    def made_at(self) -> float:
        """When it was made, in seconds since the epoch; now, if it is gone."""
        try:
            return self._labels.stat().st_mtime
        except OSError:
            return time.time()

    @property
    def _labels(self) -> Path:
        return self.path / LABELS

    def make(self, labels: Mapping[str, str]) -> int:
        """Make it, and take its lock.

        Returns:
            The lock: an open descriptor.

        Raises:
            OSError: It is there already, or can't be made.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(self.path.parent)
        new = Folder(self.path.with_name(files.TEMPORARY + os.urandom(8).hex()))
        new.path.mkdir(mode=0o700)
        lock = os.open(new.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            new._labels.write_text(json.dumps({**labels, ID: self.path.name}))
            for folder in (new.state, new.temporary, new.logs):
                folder.mkdir(mode=0o700)
            # Whole from its first moment: a folder without labels is never ours. An environment's
            # is never empty, and what is not empty is not replaced: rename(2).
            new.path.rename(self.path)
        except BaseException:
            new.remove()
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
        except OSError:
            return False
        finally:
            os.close(lock)
        return True

    def remove(self) -> bool:
        """Remove it, as far as this user can; whether it is gone."""
        remove_environment(str(self.path))
        return not self.path.exists()


def _sweep(top: Path) -> None:
    """Remove folders that were being made, or removed, by a process that was killed.

    Only what such a folder holds, and only while that is empty: it may be someone else's.
    """
    for path in top.glob(f"{ASIDE}*"):
        old = Folder(path)
        if old.is_abandoned() and (ID in old.labels() or not any(path.iterdir())):
            old.remove()
    for path in top.glob(f"{files.TEMPORARY}*"):
        new = Folder(path)
        with suppress(OSError):
            if path.lstat().st_mtime > time.time() - _BEING_MADE or not new.is_abandoned():
                continue
            for folder in (new.state, new.temporary, new.logs):
                with suppress(FileNotFoundError):
                    folder.rmdir()
            with suppress(FileNotFoundError):
                if ID in new.labels() or not new.mark.stat().st_size:
                    new.mark.unlink()
            path.rmdir()
