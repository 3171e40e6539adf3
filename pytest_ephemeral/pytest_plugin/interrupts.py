"""Interrupts: treat SIGTERM like Ctrl-C, and interrupt pytest-xdist's workers, too."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest


def interrupt_on_sigterm(config: pytest.Config) -> None:
    """Let the first SIGTERM interrupt pytest, as Ctrl-C does; a second one ends it at once.

    CI servers and service managers end a run by SIGTERM. The earlier handler is restored in
    pytest's clean-up, and is called then if a SIGTERM has come.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # another program runs this pytest in a thread; only the main thread gets signals
    previous: Any = signal.getsignal(signal.SIGTERM)
    received = False

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        nonlocal received
        received = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise KeyboardInterrupt("SIGTERM")

    def restore() -> None:
        signal.signal(signal.SIGTERM, previous)
        if received and callable(previous):
            previous(signal.SIGTERM, None)

    signal.signal(signal.SIGTERM, interrupt)
    config.add_cleanup(restore)


def interrupt_workers(nodes: Iterable[Any]) -> None:
    """Send SIGINT to each worker that still runs.

    Args:
        nodes: xdist's ``WorkerController`` of each worker.
    """
    for node in nodes:
        process = getattr(getattr(node.gateway, "_io", None), "popen", None)
        if process is not None and process.poll() is None:
            with suppress(OSError):
                os.kill(process.pid, signal.SIGINT)
