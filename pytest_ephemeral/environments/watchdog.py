"""A small process that outlives its owner by as long as it takes to clean up after it.

It holds one end of a pipe. When the other end closes without a word, the owner has died, in
whatever way, and the watchdog reaps what that run brought up. An owner that ends well may leave it
removals that have begun, so that nobody waits for them. It needs no privileges, no daemon and no
container. Until then it is a bare interpreter (``vigil.py``); this module is what the owner says to
it, and what it becomes when there is something to do. Providers whose environments guard
themselves (``guards_itself``) need none; those only run its ``settle`` to close the record of what
they have ended.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from pytest_ephemeral.environments.vigil import DIED, RELEASED

if TYPE_CHECKING:
    from pytest_ephemeral.environments.ledger import Ledger
    from pytest_ephemeral.models import Environment

# Run as a program, __name__ would be another. -P: what lies in the current folder and is called
# like a module must not be taken for it.
PROGRAM: Final = (sys.executable, "-P", "-m", "pytest_ephemeral.environments.watchdog")

_VIGIL: Final = Path(__file__).with_name("vigil.py")

#: How many environments are removed at once.
AT_ONCE: Final = 8


class Watchdog:
    """The owner's side of the pipe.

    Args:
        process: What reads it.
        pipe: Unbuffered. No child that the owner forks holds it open, or the watchdog would take
            that for the owner.
    """

    def __init__(self, process: subprocess.Popen[bytes], pipe: IO[bytes]) -> None:
        self._process = process
        self._pipe = pipe
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=pipe.close)

    def release(self, unfinished: Sequence[str] = ()) -> None:
        """Tell it that all was seen to: it goes away and does nothing more.

        Args:
            unfinished: The ids of environments whose removal it finishes first. It is not waited
                for then: what it can't remove stays in the ledger, for reap.
        """
        with contextlib.suppress(BrokenPipeError):  # it has died: nothing is left to tell
            self._pipe.write("\n".join([*unfinished, RELEASED]).encode())
        self._pipe.close()
        if unfinished:
            self._process.returncode = 0  # it outlives this process: Popen need not warn of that
        else:
            self._process.wait()


def start(store_url: str, run: str) -> Watchdog:
    """Start a watchdog for one run, in a session of its own so that no Ctrl-C reaches it.

    Args:
        store_url: Where the run's ledger is.
        run: The run's id, as owners carry it.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_VIGIL), *PROGRAM, "finish", store_url, run],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,
    )
    if process.stdin is None:  # asked for above; said for the type checker
        raise RuntimeError("the watchdog has no pipe")
    return Watchdog(process, process.stdin)


def settle_command(store_url: str, id: str) -> list[str]:
    """The command that closes the record of an environment that was ended without its owner."""
    return [*PROGRAM, "settle", store_url, id]


def finish(store_url: str, run: str, unfinished: Sequence[str]) -> None:
    """Remove what an owner has left, or all it brought up.

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

    with contextlib.suppress(EphemeralError):  # its record stays, for reap
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
