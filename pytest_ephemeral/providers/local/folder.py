"""The folder of an environment, which exists as long as any part of the environment.

It is created first and removed last. The process that starts the environment holds its lock, and
then the guard does. So a folder that can be locked is abandoned.
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
from pytest_ephemeral.providers.local.control_socket import GuardAddress
from pytest_ephemeral.providers.local.supervisor.files import (
    ASIDE,
    LABELS,
    UNMARKED,
    remove_environment,
)

#: Seconds after which an incomplete folder is not being created any more.
_CREATING = 60.0


class Folder(msgspec.Struct, frozen=True):
    """The folder of one environment.

    Attributes:
        home: The parent folder's name, in the state directory.
    """

    home: ClassVar[str] = "environments"

    path: Path

    @classmethod
    def of(cls, id: str) -> Self:
        """The folder of an environment in this state directory.

        Raises:
            EphemeralError: The id is a path, and so not valid.
        """
        if Path(id).name != id:
            raise EphemeralError(f"{id!r} is not the id of an environment")
        return cls(machine.state_directory() / cls.home / id)

    @classmethod
    def of_environment(cls, environment: Environment) -> Self:
        """The folder in an environment's record, which may be in another state directory.

        Raises:
            TamperedRecordError: The folder is not this environment's.
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
        """Check that the folder, if it exists, is that of the environment with its name.

        Raises:
            TamperedRecordError: Its labels name another environment, or it is another user's.
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
        """All folders of this user's environments in this state directory."""
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
        """The address of the environment's guard."""
        return GuardAddress(self.path.name, self.path)

    @property
    def state(self) -> Path:
        """The working folder of the processes, which they write to."""
        return self.path / "state"

    @property
    def temporary(self) -> Path:
        """The ``$TMPDIR`` of the processes."""
        return self.path / "tmp"

    @property
    def logs(self) -> Path:
        """The folder of the processes' logs."""
        return self.path / "logs"

    @property
    def mark(self) -> Path:
        """The file that is mounted in the processes' mount namespace; see ``view.protect``."""
        return self._labels

    @property
    def unmarked(self) -> Path:
        """A file that exists if nothing is mounted in the processes' mount namespace."""
        return self.path / UNMARKED

    @property
    def made_at(self) -> float:
        """When it was created, in seconds since the epoch; now, if it is gone."""
        try:
            return self._labels.stat().st_mtime
        except OSError:
            return time.time()

    @property
    def _labels(self) -> Path:
        return self.path / LABELS

    def make(self, labels: Mapping[str, str]) -> int:
        """Create the folder with its labels, and lock it.

        Returns:
            An open descriptor, which holds the lock.

        Raises:
            OSError: The folder exists, or can't be created.
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
            # Rename it when it is complete: a folder without labels is not ours. rename(2) fails
            # if the target is not empty, and an environment's folder never is.
            new.path.rename(self.path)
        except BaseException:
            new.remove()
            os.close(lock)
            raise
        return lock

    def labels(self) -> dict[str, str]:
        """Its labels; empty while it is being created or removed."""
        try:
            found = json.loads(self._labels.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def is_abandoned(self) -> bool:
        """Whether neither the process that created it nor the guard exists any more."""
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
        """Remove the folder as far as this user can; return whether it is gone."""
        remove_environment(str(self.path))
        return not self.path.exists()


def _sweep(top: Path) -> None:
    """Remove incomplete folders that a killed process was creating or removing.

    Only our own files in a folder are removed, and only empty subfolders: it may be someone
    else's.
    """
    for path in top.glob(f"{ASIDE}*"):
        old = Folder(path)
        with suppress(FileNotFoundError):  # another process removes it, too
            if old.is_abandoned() and (ID in old.labels() or not any(path.iterdir())):
                old.remove()
    for path in top.glob(f"{files.TEMPORARY}*"):
        new = Folder(path)
        with suppress(OSError):
            if path.lstat().st_mtime > time.time() - _CREATING or not new.is_abandoned():
                continue
            for folder in (new.state, new.temporary, new.logs):
                with suppress(FileNotFoundError):
                    folder.rmdir()
            with suppress(FileNotFoundError):
                if ID in new.labels() or not new.mark.stat().st_size:
                    new.mark.unlink()
            path.rmdir()
