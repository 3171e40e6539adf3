"""A small process that outlives its owner by as long as it takes to clean up after it.

When the owner has died, in whatever way, the watchdog removes what that run brought up. An owner
that ends well may leave it removals that have begun, so that nobody waits for them. Providers whose
environments guard themselves (``guards_itself``) need none; those only run its ``settle`` to close
the record of what they have ended.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_ephemeral.vigil import DIED, Vigil, program

if TYPE_CHECKING:
    from pytest_ephemeral.environments.ledger import Ledger
    from pytest_ephemeral.models import Environment

# Run as a program, __name__ would be another.
MODULE: Final = "pytest_ephemeral.environments.watchdog"

#: How many environments are removed at once.
AT_ONCE: Final = 8


def start(store_url: str, run: str) -> Vigil:
    """Start a watchdog for one run. What it is left unfinished are ids of environments.

    Args:
        store_url: Where the run's ledger is.
        run: The run's id, as owners carry it.
    """
    return Vigil(program(MODULE, "finish", store_url, run))


def settle_command(store_url: str, id: str) -> list[str]:
    """The command that closes the record of an environment that was ended without its owner."""
    return program(MODULE, "settle", store_url, id)


def finish(store_url: str, run: str, unfinished: Sequence[str]) -> None:
    """Remove what an owner has left, or all it brought up. What fails stays for reap.

    Args:
        store_url: Where the ledger is.
        run: Whose environments.
        unfinished: The ids of those; or ``DIED`` for all.
    """
    from concurrent.futures import ThreadPoolExecutor

    ledger = _ledger(store_url)
    own = (one for one in ledger.entries() if one.owner.run == run and not one.kept)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for environment in own:
            if DIED in unfinished or environment.id in unfinished:
                pool.submit(_remove, ledger, environment)


def settle(store_url: str, id: str) -> None:
    """Remove the record of an environment, and whatever may be left of it."""
    from pytest_ephemeral.errors import NothingMatchedError

    ledger = _ledger(store_url)
    with contextlib.suppress(NothingMatchedError):  # gone already
        _remove(ledger, ledger.get(id))


def _remove(ledger: Ledger, environment: Environment) -> None:
    from pytest_ephemeral.environments.removal import remove
    from pytest_ephemeral.errors import EphemeralError

    with contextlib.suppress(EphemeralError):
        remove(ledger, environment)


def _ledger(store_url: str) -> Ledger:
    from pytest_ephemeral.environments.ledger import Ledger
    from pytest_ephemeral.store import open_store

    return Ledger(open_store(store_url, Path("/")))


def main(argv: Sequence[str]) -> None:
    """What the processes above run."""
    verb, store_url, subject, *rest = argv
    if verb == "finish":
        finish(store_url, subject, rest)
    else:
        settle(store_url, subject)


if __name__ == "__main__":
    main(sys.argv[1:])
