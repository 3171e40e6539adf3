"""Begin a run with ``--ephemeral-env``: as the controller, or as a worker of xdist."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pytest_ephemeral.broker.client import BrokerClient
from pytest_ephemeral.broker.protocol import Opened, ProgressEvent
from pytest_ephemeral.pytest_plugin import base_url, hooks, interrupts
from pytest_ephemeral.pytest_plugin.settings import process, read
from pytest_ephemeral.pytest_plugin.worker import WORKER_INPUT, Worker


def begin(config: pytest.Config) -> None:
    """Register the controller, or a worker."""
    settings = read(config)
    if hasattr(config, "workerinput"):
        _begin_worker(config, settings)
        return
    from pytest_ephemeral.pytest_plugin import owner
    from pytest_ephemeral.pytest_plugin.controller import Controller

    interrupts.interrupt_on_sigterm(config)
    controller = Controller(config, settings, owner.get(config))
    config.pluginmanager.register(controller, "ephemeral-controller")


def _begin_worker(config: pytest.Config, settings: Any) -> None:
    given = config.workerinput[WORKER_INPUT]  # type: ignore[attr-defined]
    client = BrokerClient(given["address"], given["key"])
    config.add_cleanup(client.close)
    listener = _WorkerListener(config, client, given["plugins"])
    found: list[Opened] = []

    def wait_until_open() -> Opened:
        if not found:
            found.append(client.wait_until_open())
        return found[0]

    def listen() -> Any:
        listener.listen()
        return process(config)

    worker = Worker(
        config, settings, client, opened=wait_until_open, process=listen, refuse=client.refuse
    )
    config.pluginmanager.register(worker, "ephemeral-worker")
    if base_url.applies(config) and wait_until_open().default is not None:
        config.pluginmanager.register(base_url, "ephemeral-base-url")


class _WorkerListener(hooks.HookListener):
    """Calls the hooks of a conftest.py that only workers load; the controller does the rest."""

    def __init__(self, config: pytest.Config, client: BrokerClient, known: Sequence[str]) -> None:
        super().__init__(config)
        self._client = client
        self._known = known

    def listen(self) -> None:
        """Listen to the owner, if there is such a conftest.py."""
        own = hooks.implementers(self._config.pluginmanager)
        if found := hooks.find_missing(own, self._known):
            from pytest_ephemeral.broker.process import EventThread

            events = EventThread(self._client.address, self._client.key, self, found)
            self._config.add_cleanup(events.wait_for_end)
            events.welcomed.wait()

    def on_progress(self, event: ProgressEvent) -> None:
        """See ``RunListener``."""

    def print(self, text: str) -> None:
        """See ``RunListener``."""

    def warn(self, text: str) -> None:
        """See ``RunListener``."""

    def on_owner_lost(self) -> None:
        """See ``RunListener``; tests of this worker get an error at their next request."""
