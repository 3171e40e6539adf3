"""The watchdog of a bake: it cleans up after a bake whose process has died, by the image's key.

A process of its own, the watcher, reads from a pipe. If the pipe ends without a message, the
process that bakes has died, and the watcher executes this module. That needs no privileges, no
daemon and no container.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.providers.docker import bake_watcher, endpoint, quarantine
from pytest_ephemeral.providers.docker.resources import IN_FLIGHT

# A constant, as __name__ is "__main__" when this runs as a program.
MODULE: Final = "pytest_ephemeral.providers.docker.bake_watchdog"

#: How often it removes what it finds, every ``IN_FLIGHT`` seconds.
ROUNDS: Final = 6


@contextmanager
def watch(key: str) -> Iterator[None]:
    """Start a watchdog process for a bake; release it when the bake ends."""
    watcher = [sys.executable, "-I", "-S", bake_watcher.__file__]
    # With -P, a file in the current folder never replaces a module of the same name.
    command = [sys.executable, "-P", "-m", MODULE, key, quarantine.build_id(key)]
    process = subprocess.Popen(
        [*watcher, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,  # Ctrl-C must not reach it
    )
    assert process.stdin is not None
    if hasattr(os, "register_at_fork"):
        # A forked child must not keep the pipe open.
        os.register_at_fork(after_in_child=process.stdin.close)
    try:
        yield
    finally:
        with process, suppress(BrokenPipeError):  # the watcher has died
            process.stdin.write(bake_watcher.RELEASED)


def clean_up(key: str, build: str) -> None:
    """Cancel a bake's build, wait until nobody bakes the key, and remove what the bake left.

    Args:
        key: The key of the image.
        build: The id of the bake's build.
    """
    with suppress(EphemeralError, TimeoutError):
        quarantine.cancel(endpoint.find(), build)
    with quarantine.lock(key):
        for _ in range(ROUNDS):  # a busy engine may still create something for its last request
            with suppress(EphemeralError, TimeoutError):  # reap removes it later
                quarantine.discard(endpoint.find(), key)
            time.sleep(IN_FLIGHT)


if __name__ == "__main__":
    clean_up(sys.argv[1], sys.argv[2])
