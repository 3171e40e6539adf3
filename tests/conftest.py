"""What holds for all tests."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Have Ctrl-C mean what it means in a terminal: a background job's children ignore it.

    A process that starts with the signal ignored hands that on, and the tests that send it would
    wait for ever. One that handles it gives its children back the default.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
