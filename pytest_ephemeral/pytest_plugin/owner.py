"""Starting the owner process of a run, before the first conftest.py is loaded.

It imports little, so that the process is not kept waiting for what only its client needs.
"""

from __future__ import annotations

import os
from typing import Any, Final

import pytest

from pytest_ephemeral.broker.process import OwnerProcess
from pytest_ephemeral.errors import EphemeralError

#: The owner process that was started before the first conftest.py was loaded.
STARTED: Final = pytest.StashKey[Any]()


def start_early(config: pytest.Config) -> None:
    """Start the owner process now, so that its imports run beside conftest files and collection.

    Not where this may be a worker of xdist, which only pytest_configure knows.
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
