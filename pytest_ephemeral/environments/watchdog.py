"""A small process that outlives its owner by as long as it takes to clean up after it.

It holds one end of a pipe. When the other end closes without a word, the owner has died, in
whatever way, and the watchdog reaps what that run brought up. An owner that ends well may leave it
removals that have begun, so that nobody waits for them. It needs no privileges, no daemon and no
container. Providers whose environments guard themselves (``guards_itself``) need none;
those only run its ``settle`` to close the record of what they have ended.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pytest_ephemeral.environments.ledger import Ledger

# Run as a program, __name__ would be another.
MODULE: Final = "pytest_ephemeral.environments.watchdog"

RELEASED: Final = b"released\n"

#: Seconds in which an owner brings its first environment up.
HEAD_START: Final = 1.0


@dataclass(frozen=True, slots=True)
class Watchdog:
    """The owner's side of the pipe."""

    process: subprocess.Popen[bytes]
    pipe: IO[bytes]

    def release(self, unfinished: Sequence[str] = ()) -> None:
        """Tell it that all was seen to: it goes away and does nothing more.

        Args:
            unfinished: The ids of environments whose removal it finishes first. It is not waited
                for then: what it can't remove stays in the ledger, for reap.
        """
        with contextlib.suppress(BrokenPipeError):  # it has died: nothing is left to tell
            self.pipe.write("".join(f"{id}\n" for id in unfinished).encode() + RELEASED)
            self.pipe.flush()
        with contextlib.suppress(BrokenPipeError):
            self.pipe.close()
        if unfinished:
            self.process.returncode = 0  # it outlives this process: Popen need not warn of that
        else:
            self.process.wait()


def start(store_url: str, run: str) -> Watchdog:
    """Start a watchdog for one run, in a session of its own so that no Ctrl-C reaches it.

    Args:
        store_url: Where the run's ledger is.
        run: The run's id, as owners carry it.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", MODULE, "guard", store_url, run],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    if process.stdin is None:  # asked for above; said for the type checker
        raise RuntimeError("the watchdog has no pipe")
    return Watchdog(process, process.stdin)


def settle_command(store_url: str, id: str) -> list[str]:
    """The command that closes the record of an environment that was ended without its owner."""
    return [sys.executable, "-m", MODULE, "settle", store_url, id]


def guard(store_url: str, run: str, pipe: IO[bytes]) -> None:
    """Wait for the owner's word, or its death; then remove what it left, or all it brought up.

    Args:
        store_url: Where the ledger is.
        run: Whose environments.
        pipe: What the owner holds the other end of.
    """
    _let_go_first(pipe)
    from pytest_ephemeral.environments.removal import remove
    from pytest_ephemeral.errors import EphemeralError

    ledger = _ledger(store_url)  # loaded before it is needed, so that only the removing takes time
    told = pipe.read()
    left = told.removesuffix(RELEASED).decode().split() if told.endswith(RELEASED) else None
    if left == []:
        return
    for environment in ledger.entries():
        own = environment.owner.run == run and not environment.kept
        if own and (left is None or environment.id in left):
            with contextlib.suppress(EphemeralError):  # its record stays, for reap
                remove(ledger, environment)


def _let_go_first(pipe: IO[bytes]) -> None:
    """Load nothing while the environment is coming up: that has better use for the processors."""
    if sys.platform != "win32":
        import select

        select.select([pipe], [], [], HEAD_START)


def settle(store_url: str, id: str) -> None:
    """Remove the record of an environment, and whatever may be left of it."""
    from pytest_ephemeral.environments.removal import remove
    from pytest_ephemeral.errors import EphemeralError

    ledger = _ledger(store_url)
    with contextlib.suppress(EphemeralError):  # gone already, or its record stays for reap
        remove(ledger, ledger.get(id))


def _ledger(store_url: str) -> Ledger:
    from pytest_ephemeral.environments.ledger import Ledger
    from pytest_ephemeral.store import open_store

    return Ledger(open_store(store_url, Path("/")))


def main(argv: Sequence[str]) -> None:
    """What the processes above run."""
    verb, store_url, subject = argv
    if verb == "guard":
        guard(store_url, subject, sys.stdin.buffer)
    else:
        settle(store_url, subject)


if __name__ == "__main__":
    main(sys.argv[1:])
