"""A small process that ends a bake whose own process has died, in whatever way.

As the watchdog does for environments: it holds one end of a pipe, and acts when the other closes
without a word. What a bake has on the engine is found by its key.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

_RELEASED: Final = b"released"

#: What it runs. It loads nothing of ours as long as there is nothing to do.
_PROGRAM: Final = f"""
import sys
if sys.stdin.buffer.read() != {_RELEASED!r}:
    from pytest_ephemeral.providers.docker.guard import clean_up
    clean_up(sys.argv[1])
"""


@contextmanager
def watching(key: str) -> Iterator[None]:
    """Have someone there who outlives this process, as long as something is made for that key."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, key],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # no Ctrl-C is for it
    )
    try:
        yield
    finally:
        # One that has died itself leaves no more than there would be without it.
        process.communicate(_RELEASED)


def clean_up(key: str) -> None:
    """Remove what was half-made, unless someone else is baking the same by now."""
    from pytest_ephemeral.errors import EphemeralError
    from pytest_ephemeral.providers.docker.baking import DockerBaker, held
    from pytest_ephemeral.providers.docker.belongings import IN_FLIGHT

    with held(key), suppress(EphemeralError, TimeoutError):  # reap finds it by its labels
        DockerBaker().discard(key)
        time.sleep(IN_FLIGHT)  # the engine may still be at its last request
        DockerBaker().discard(key)
