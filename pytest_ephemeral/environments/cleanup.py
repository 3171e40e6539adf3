"""Destroy the environments that a dead owner process has left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pytest_ephemeral.ledger import Ledger
    from pytest_ephemeral.models import Environment

# Not __name__, which is __main__ when this module runs as a program.
MODULE: Final = "pytest_ephemeral.environments.cleanup"

#: How many environments to destroy in parallel.
AT_ONCE: Final = 8

#: Seconds before each retry of a failed removal.
BACKOFF: Final = (1.0, 2.0, 5.0, 15.0, 30.0, 60.0, 60.0)


def settle_command(store_url: str, id: str) -> list[str]:
    """The command line that runs ``settle``, for a guard that has outlived the owner process.

    ``-P`` keeps files of the current folder from replacing modules of the same name.
    """
    return [sys.executable, "-P", "-m", MODULE, store_url, id]


def finish(store_url: str, run: str, pause: Callable[[float], object] = time.sleep) -> int:
    """Destroy all environments of a run, except those that were kept.

    A failed removal is tried again for a few minutes. After that, the environment's record has the
    reason, and ``pytest-ephemeral reap`` can try again.

    Args:
        store_url: The URL of the ledger's store.
        run: The run's id.
        pause: Waits for a number of seconds.

    Returns:
        The exit status: 0 if nothing is left, otherwise 6.
    """
    from pytest_ephemeral.errors import DestroyError

    def is_own(environment: Environment) -> bool:
        return environment.owner.run == run and not environment.kept

    return 0 if _retry(store_url, is_own, pause) else DestroyError.exit_status


def _remove_all(ledger: Ledger, environments: Sequence[Environment]) -> bool:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return all(list(pool.map(lambda one: _remove(ledger, one), environments)))


def settle(store_url: str, id: str) -> None:
    """Destroy what is left of one environment, and remove its record; see ``finish``."""
    _retry(store_url, lambda one: one.id == id)


def _retry(
    store_url: str,
    wanted: Callable[[Environment], bool],
    pause: Callable[[float], object] = time.sleep,
) -> bool:
    """Destroy the wanted environments, with retries; returns whether none is left."""
    ledger = open_ledger(store_url)
    for seconds in (0.0, *BACKOFF):
        pause(seconds)
        if _remove_all(ledger, [one for one in ledger.entries() if wanted(one)]):
            return True
    return False


def _remove(ledger: Ledger, environment: Environment) -> bool:
    from pytest_ephemeral.environments.removal import remove
    from pytest_ephemeral.errors import EphemeralError

    try:
        remove(ledger, environment)
    except EphemeralError:
        return False  # its record has the reason
    return True


def open_ledger(store_url: str) -> Ledger:
    """Open the ledger of a store without a configuration."""
    from pytest_ephemeral.ledger import Ledger
    from pytest_ephemeral.store import open_store

    return Ledger(open_store(store_url, Path("/")))


if __name__ == "__main__":
    settle(*sys.argv[1:])
