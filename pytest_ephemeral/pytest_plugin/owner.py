"""Start the owner process of a run, before the first conftest.py is loaded; replace a killed one.

This module imports little, so that the process is started early.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from subprocess import TimeoutExpired
from typing import Any, Final

import pytest

from pytest_ephemeral.broker.process import OwnerProcess
from pytest_ephemeral.broker.protocol import Opened
from pytest_ephemeral.errors import EphemeralError

#: The owner process that was started before the first conftest.py was loaded.
STARTED: Final = pytest.StashKey[Any]()

#: Seconds that the end of a run waits until a new owner has destroyed a dead owner's environments.
CLEANUP_TIME: Final = 30.0


def start_early(config: pytest.Config) -> None:
    """Start the owner process now, so that its imports run beside collection.

    A process that may be a worker of xdist starts none; only pytest_configure knows for certain.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        config.stash[STARTED] = _start(config)


def get(config: pytest.Config) -> OwnerProcess:
    """The owner process, started now if it was not before."""
    owner: OwnerProcess = config.stash.get(STARTED, None) or _start(config)
    return owner


def _start(config: pytest.Config) -> OwnerProcess:
    try:
        owner = OwnerProcess()
    except (EphemeralError, OSError) as error:
        raise pytest.UsageError(f"--ephemeral-env: {error}") from None
    config.add_cleanup(owner.leave)
    return owner


class Successor:
    """The fresh owner process that ends what one has left that was killed.

    Args:
        owner: The owner process that may be killed.
        complain: Told that it was.

    Attributes:
        needed: Whether the owner was killed.
    """

    def __init__(self, owner: OwnerProcess, complain: Callable[[str], None]) -> None:
        self.needed = False
        self._owner = owner
        self._complain = complain
        self._process: Any = None
        self._starting = threading.Lock()

    def start(self, opened: Opened | None) -> None:
        """Start it, once, as soon as it is known which run it has to end.

        Args:
            opened: The run, if that is known.
        """
        with self._starting:
            if not self.needed:
                self.needed = True
                self._complain(_KILLED.format(self._owner.pid))
            if self._process is None and opened is not None and opened.store:
                self._process = self._owner.replace(opened.store, opened.run)

    def wait(self) -> list[str]:
        """Wait until it has ended, if it was started.

        Returns:
            What to tell the user then.
        """
        if self._process is None:
            return []
        try:
            status = self._process.wait(CLEANUP_TIME)
        except TimeoutExpired:
            status = None
            self._process.returncode = 0  # it goes on; Popen need not warn of that
        if status == 0:
            return ["all of them were destroyed"]
        return ["some of them may remain: pytest-ephemeral reap"]


_KILLED: Final = (
    "the process that owned this run's environments (pid {}) was killed: they are being destroyed "
    "by another one"
)
