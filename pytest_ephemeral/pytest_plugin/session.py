"""A run with ``--ephemeral-env``: the process that owns its environments, and those that borrow.

The owner is the process that the user started: pytest itself, or the controller of pytest-xdist.
Pytest itself borrows from its own broker; xdist's workers borrow over a socket, and load nothing
of what only the owner needs.
"""

from __future__ import annotations

import pytest

from pytest_ephemeral.pytest_plugin import signals
from pytest_ephemeral.pytest_plugin.borrower import WORKER_INPUT, borrow
from pytest_ephemeral.pytest_plugin.settings import read


def begin(config: pytest.Config) -> None:
    """Take part in a run: as the owner, or as a worker."""
    settings = read(config)
    if not hasattr(config, "workerinput"):
        from pytest_ephemeral.pytest_plugin.owner import Opener

        signals.interrupt_on_sigterm(config)
        config.pluginmanager.register(Opener(config, settings), "ephemeral-opener")
        return
    from pytest_ephemeral.pytest_plugin.remote import RemoteDesk

    given = config.workerinput[WORKER_INPUT]
    desk = RemoteDesk(given["address"], given["authkey"])
    config.add_cleanup(desk.close)
    borrow(config, settings, desk, known=given["templates"], default=given["default"])
