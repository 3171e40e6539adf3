"""SIGTERM, which is how CI servers and service managers end a run, is pytest's own interrupt."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import pytest


def interrupt_on_sigterm(config: pytest.Config) -> None:
    """Let the first SIGTERM tear everything down, as Ctrl-C does; a second one ends at once.

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
