"""The watchdog of a bake: it cleans up after a bake whose process has died, by the image's key."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.providers.docker import endpoint, quarantine
from pytest_ephemeral.providers.docker.deadman import Deadman, program
from pytest_ephemeral.providers.docker.resources import IN_FLIGHT

# A constant, as __name__ is "__main__" when this runs as a program.
MODULE: Final = "pytest_ephemeral.providers.docker.bake_watchdog"

#: How often it removes what it finds, every ``IN_FLIGHT`` seconds.
ROUNDS: Final = 6


@contextmanager
def watch(key: str) -> Iterator[None]:
    """Start a watchdog process for a bake; release it when the bake ends."""
    deadman = Deadman(program(MODULE, key, quarantine.build_id(key)))
    try:
        yield
    finally:
        deadman.release()


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
