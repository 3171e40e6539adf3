"""The workers of pytest-xdist, as the controller's processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from typing import Any


def interrupt(nodes: Iterable[Any]) -> None:
    """Send each worker the interrupt that the controller has got, unless it has ended.

    Args:
        nodes: xdist's ``WorkerController`` of each.
    """
    for node in nodes:
        process = getattr(getattr(node.gateway, "_io", None), "popen", None)
        if process is not None and process.poll() is None:
            with suppress(OSError):
                os.kill(process.pid, signal.SIGINT)
