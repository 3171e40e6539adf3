"""What ends a bake whose own process has died, in whatever way: found by its image's key."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from pytest_ephemeral.vigil import Vigil, program

# Run as a program, __name__ would be another.
MODULE: Final = "pytest_ephemeral.providers.docker.guard"

#: How often it is looked, ``IN_FLIGHT`` apart.
ROUNDS: Final = 6


@contextmanager
def watching(key: str) -> Iterator[None]:
    """Have someone there who outlives this process, as long as something is made for that key."""
    vigil = Vigil(program(MODULE, key))
    try:
        yield
    finally:
        vigil.release()


def clean_up(key: str) -> None:
    """Remove what was half-made, unless someone else is baking the same by now."""
    from pytest_ephemeral.errors import EphemeralError
    from pytest_ephemeral.providers.docker.baking import DockerBaker, held
    from pytest_ephemeral.providers.docker.belongings import IN_FLIGHT

    with held(key):
        for _ in range(ROUNDS):  # an engine that is busy may still be at its last request
            with suppress(EphemeralError, TimeoutError):  # reap finds it
                DockerBaker().discard(key)
            time.sleep(IN_FLIGHT)


if __name__ == "__main__":
    clean_up(sys.argv[1])
