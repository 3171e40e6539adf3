"""A run with ``--ephemeral-env``: the process that owns its environments, and those that borrow.

The owner is the process that the user started: pytest itself, or the controller of pytest-xdist.
Pytest itself borrows from its own broker; xdist's workers borrow over a socket, and load nothing
of what only the owner needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pytest

from pytest_ephemeral.pytest_plugin import base_url, signals
from pytest_ephemeral.pytest_plugin.borrower import Borrower, Desk
from pytest_ephemeral.pytest_plugin.settings import Settings, read

#: What a worker finds in its ``workerinput`` about the controller's broker.
WORKER_INPUT: Final = "pytest_ephemeral"


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


def borrow(
    config: pytest.Config,
    settings: Settings,
    desk: Desk,
    *,
    known: Sequence[str],
    default: str | None,
) -> None:
    """Let the tests of this process borrow at a desk.

    Args:
        config: Of this process.
        settings: What this run was told to do.
        desk: Where environments are to be had.
        known: The templates there are; empty when anything goes.
        default: The template of tests that name none; None when that can't be told.
    """
    borrower = Borrower(config, settings, desk, known=known, default=default)
    config.pluginmanager.register(borrower, "ephemeral-borrower")
    if default is not None and base_url.applies(config):
        config.pluginmanager.register(base_url, "ephemeral-base-url")
