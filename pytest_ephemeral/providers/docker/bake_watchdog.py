"""Cleans up after a bake whose own process has died; what it left is found by the image's key."""

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

# Run as a program, __name__ would be another.
MODULE: Final = "pytest_ephemeral.providers.docker.bake_watchdog"

#: How often it looks, ``IN_FLIGHT`` apart.
ROUNDS: Final = 6


@contextmanager
def watch(key: str) -> Iterator[None]:
    """Have a process that outlives this one clean up after a bake of that key."""
    deadman = Deadman(program(MODULE, key, quarantine.build_id(key)))
    try:
        yield
    finally:
        deadman.release()


def clean_up(key: str, build: str) -> None:
    """Remove what the bake left, unless another process is baking the same key by now.

    Args:
        key: What was baked.
        build: What its build is called, which is stopped in any case.
    """
    with suppress(EphemeralError, TimeoutError):
        quarantine.cancel(endpoint.find(), build)
    with quarantine.lock(key):
        for _ in range(ROUNDS):  # an engine that is busy may still be at its last request
            with suppress(EphemeralError, TimeoutError):  # reap finds it
                quarantine.discard(endpoint.find(), key)
            time.sleep(IN_FLIGHT)


if __name__ == "__main__":
    clean_up(sys.argv[1], sys.argv[2])
