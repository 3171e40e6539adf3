"""Interrupts: a SIGTERM becomes pytest's own, and pytest-xdist's workers get it, too."""

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
    """Let the first SIGTERM tear everything down, as Ctrl-C does; a second one ends at once.

    CI servers and service managers end a run by SIGTERM.

    What was installed before is put back with the last of pytest's own clean-up, and is called
    then if a SIGTERM has come.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # Python lets only the main thread handle signals; someone else runs this pytest
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
    """Send each worker the interrupt that the controller has got, unless it has ended.

    Args:
        nodes: xdist's ``WorkerController`` of each.
    """
    for node in nodes:
        process = getattr(getattr(node.gateway, "_io", None), "popen", None)
        if process is not None and process.poll() is None:
            with suppress(OSError):
                os.kill(process.pid, signal.SIGINT)
