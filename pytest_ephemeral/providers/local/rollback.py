"""Putting a local environment back: its processes started again on what they had written then.

The baseline is a copy of all that they had written once they were ready and seeded. While tests
run, another copy of it is made, so that a rollback only has to rename. Every copy is made by a
process of the guard's, which ends with the environment.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers import external_state
from pytest_ephemeral.providers.local import client, signals
from pytest_ephemeral.providers.local.folder import Folder
from pytest_ephemeral.providers.local.supervisor.files import STATES
from pytest_ephemeral.providers.local.tables import LocalTemplate
from pytest_ephemeral.providers.protocol import Order
from pytest_ephemeral.tables import Template

#: Seconds that processes have to end before the baseline is taken, where a template has no grace of
#: its own, so that they leave it in order: a database that was killed begins with a recovery.
GRACE: Final = 10.0

#: Copies of a folder are beside it: as it was, as it will be next, and as it was last.
_BASELINE, _NEXT, _OLD = ".baseline", ".next", ".old"

#: Copies shared by reference where the file system can (XFS, Btrfs), with all that files have.
_COPY: Final = """
for folder in "$@"; do
    rm -rf "$folder$OLD" "$folder$TO"
    part="$folder$TO.part"
    rm -rf "$part"
    cp -a --reflink=auto "$folder$FROM" "$part" 2> /dev/null ||
        { rm -rf "$part"; cp -a "$folder$FROM" "$part"; } || exit
    mv "$part" "$folder$TO" || exit
done
"""

#: The copies that are being made for the next rollback, by environment.
_copies: dict[str, _Copy] = {}


class LocalRollback:
    """The part of the local provider that puts environments back; see ``SupportsRollback``."""

    def check_rollback(self, template: Template, root: Path, /) -> None:  # noqa: ARG002
        """What processes write into ``$STATE`` and ``$TMPDIR`` is put back, and nothing else."""
        assert isinstance(template, LocalTemplate)
        commands = template.processes().values()
        external_state.refuse_databases(template, dict(os.environ), commands=commands)

    def take_baseline(self, order: Order, /) -> Environment:
        """Have the processes end in order, copy what they wrote, and start them again."""
        place, template = Folder.of_environment(order.environment), order.template
        assert isinstance(template, LocalTemplate)
        grace = float(template.grace or GRACE)
        client.halt(place.control, grace, signals.number_of(template.stop_signal))
        _copy(place, "", _BASELINE)
        client.start(place.control)
        _copies[order.environment.id] = _Copy(place)
        return order.environment

    def roll_back(self, order: Order, /) -> Environment:
        """Kill the processes, put a copy in the place of what they wrote, and start them again."""
        place = Folder.of_environment(order.environment)
        _copies[order.environment.id].wait()
        client.halt(place.control)
        for folder in _written(place):
            folder.rename(_beside(folder, _OLD))
            _beside(folder, _NEXT).rename(folder)
        client.start(place.control)
        _copies[order.environment.id] = _Copy(place)
        return order.environment


class _Copy:
    """A copy of the baseline that is being made."""

    def __init__(self, place: Folder) -> None:
        self._problem: EphemeralError | None = None
        self._thread = threading.Thread(target=self._make, args=(place,), daemon=True)
        self._thread.start()

    def _make(self, place: Folder) -> None:
        try:
            _copy(place, _BASELINE, _NEXT)
        except EphemeralError as error:
            self._problem = error

    def wait(self) -> None:
        """Wait until it is made.

        Raises:
            EphemeralError: It could not be.
        """
        self._thread.join()
        if self._problem is not None:
            raise self._problem


def _copy(place: Folder, source: str, target: str) -> None:
    """Copy each folder that processes write into, by a process of the guard's.

    Raises:
        EphemeralError: It could not be copied; says why.
    """
    names = [f"FROM={source}", f"TO={target}", f"OLD={_OLD}"]
    argv = ["env", *names, "/bin/sh", "-c", _COPY, "sh", *map(str, _written(place))]
    done = client.run(place.control, argv, None, own=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"cp exited with {done.returncode}"]
        raise EphemeralError(f"what its processes wrote can't be copied: {said[0]}")


def _written(place: Folder) -> Sequence[Path]:
    """The folders that its processes write into."""
    return [place.state, place.temporary, *_written_by_others(place)]


def _written_by_others(place: Folder) -> Iterator[Path]:
    """Those of processes that run as another user; see ``accounts``."""
    states = place.path / STATES
    for folder in sorted(states.iterdir()) if states.is_dir() else ():
        if not folder.name.endswith((_BASELINE, _NEXT, _OLD)):
            yield folder


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(folder.name + ending)
