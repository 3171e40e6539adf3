"""Clean up after an owner that could not do it itself."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pytest_ephemeral.environments.ledger import Ledger
    from pytest_ephemeral.models import Environment

# Run as a program, __name__ would be another.
MODULE: Final = "pytest_ephemeral.environments.cleanup"

#: How many environments are removed at once.
AT_ONCE: Final = 8

#: Seconds before each retry of a removal that failed.
BACKOFF: Final = (1.0, 2.0, 5.0, 15.0, 30.0, 60.0, 60.0)


def settle_command(store_url: str, id: str) -> list[str]:
    """The command that removes the record of an environment that ended without its owner.

    A file in the current folder never replaces a module of the same name (``-P``).
    """
    return [sys.executable, "-P", "-m", MODULE, store_url, id]


def finish(store_url: str, run: str, pause: Callable[[float], object] = time.sleep) -> int:
    """Destroy all environments of a run, except those that were kept.

    What can't be removed is tried again, a few minutes long. Then its record says why, and it
    stays for ``pytest-ephemeral reap``.

    Args:
        store_url: Where the ledger is.
        run: Whose environments.
        pause: Waits that many seconds.

    Returns:
        0 when nothing of them is left, else 6.
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
    """Destroy what is left of an environment, and remove its record; see ``finish``."""
    _retry(store_url, lambda one: one.id == id)


def _retry(
    store_url: str,
    wanted: Callable[[Environment], bool],
    pause: Callable[[float], object] = time.sleep,
) -> bool:
    """Destroy those environments; tried again until none is left, or a few minutes have passed."""
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
        return False  # its record says why
    return True


def open_ledger(store_url: str) -> Ledger:
    """The ledger of a store, opened without a configuration."""
    from pytest_ephemeral.environments.ledger import Ledger
    from pytest_ephemeral.store import open_store

    return Ledger(open_store(store_url, Path("/")))


if __name__ == "__main__":
    settle(*sys.argv[1:])
