"""Putting a local environment back: its processes started again on what they had written then.

What they had written once they were ready and seeded is the baseline. Where the kernel lets us, it
stays as it is below a layer that takes what they write from then on, and a rollback is a new layer.
Elsewhere it is copied, and while tests run, another copy of it is made, so that a rollback only has
to rename. Copies are made by a process of the guard's, which ends with the environment.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers import external_state
from pytest_ephemeral.providers.local import client, signals
from pytest_ephemeral.providers.local.folder import Folder
from pytest_ephemeral.providers.local.supervisor.files import STATES
from pytest_ephemeral.providers.local.supervisor.layers import BASELINE, UPPER, WORK
from pytest_ephemeral.providers.local.tables import LocalTemplate
from pytest_ephemeral.providers.protocol import Order
from pytest_ephemeral.tables import Template

#: Seconds that processes have to end before the baseline is taken, where a template has no grace of
#: its own, so that they leave it in order: a database that was killed begins with a recovery.
GRACE: Final = 10.0

#: Copies of a folder are beside it: as it will be next, and as it was last.
_NEXT, _OLD = ".next", ".old"
_BESIDE: Final = re.compile(rf".*({BASELINE}|{_NEXT}|{_OLD}|{UPPER}\d+|{WORK}\d+)")

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


class LocalRollback:
    """The part of the local provider that puts environments back; see ``SupportsRollback``."""

    def check_rollback(self, template: Template, root: Path, /) -> None:  # noqa: ARG002
        """What processes write into ``$STATE`` and ``$TMPDIR`` is put back, and nothing else."""
        assert isinstance(template, LocalTemplate)
        commands = template.processes().values()
        external_state.refuse_databases(template, dict(os.environ), commands=commands)

    def take_baseline(self, order: Order, /) -> Environment:
        """Have the processes end in order, keep what they wrote, and start them again."""
        place, template = Folder.of_environment(order.environment), order.template
        assert isinstance(template, LocalTemplate)
        grace = float(template.grace or GRACE)
        client.halt(place.control, grace, signals.number_of(template.stop_signal))
        _baselines[order.environment.id] = _take(place)
        client.start(place.control)
        return order.environment

    def roll_back(self, order: Order, /) -> Environment:
        """Kill the processes, have them see what they wrote by then, and start them again."""
        place, baseline = Folder.of_environment(order.environment), _baselines[order.environment.id]
        baseline.prepare()
        client.halt(place.control)
        baseline.put_back()
        client.start(place.control)
        baseline.tidy()
        return order.environment


class _LocalBaseline:
    """What the processes of an environment had written.

    Attributes:
        place: The environment's folder.
        folders: Those that its processes write into.
    """

    def __init__(self, place: Folder, folders: Sequence[Path]) -> None:
        self.place = place
        self.folders = folders
        self._problem: EphemeralError | None = None
        self._thread: threading.Thread | None = None

    def prepare(self) -> None:
        """Wait until the next rollback can be done.

        Raises:
            EphemeralError: It can't be.
        """
        if self._thread is not None:
            self._thread.join()
        if self._problem is not None:
            raise self._problem

    def put_back(self) -> None:
        """Have processes that are started now see it."""
        raise NotImplementedError

    def tidy(self) -> None:
        """Remove what was written since, and prepare the next rollback; goes on meanwhile."""
        raise NotImplementedError

    def _in_background(self, act: Callable[[], None]) -> None:
        def run() -> None:
            try:
                act()
            except EphemeralError as error:
                self._problem = error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()


#: The baselines of environments that this process has brought up.
_baselines: dict[str, _LocalBaseline] = {}


class _Layered(_LocalBaseline):
    """One that stays as it is, below layers."""

    _number = 0

    def begin(self) -> bool:
        """Put it below a first layer; False where that can't be, and all is as it was."""
        for folder in self.folders:
            status = folder.stat()
            folder.rename(_beside(folder, BASELINE))
            folder.mkdir()
            os.chown(folder, status.st_uid, status.st_gid)
            folder.chmod(status.st_mode)
        if not client.layer(self.place.control, list(map(str, self.folders)), 0):
            return True
        for folder in self.folders:
            folder.rmdir()
            _beside(folder, BASELINE).rename(folder)
        return False

    def put_back(self) -> None:
        self._number += 1
        refused = client.layer(self.place.control, list(map(str, self.folders)), self._number)
        if refused:
            raise EphemeralError(
                f"the files that its processes write can't be kept apart: {refused}"
            )

    def tidy(self) -> None:
        last = self._number - 1
        old = [_beside(one, f"{what}{last}") for one in self.folders for what in (UPPER, WORK)]
        self._in_background(lambda: _run(self.place, ["rm", "-rf", *map(str, old)]))


class _Copied(_LocalBaseline):
    """One that is copied."""

    def begin(self) -> None:
        """Take it.

        Raises:
            EphemeralError: It can't be copied.
        """
        self._copy("", BASELINE)
        self.tidy()

    def put_back(self) -> None:
        for folder in self.folders:
            folder.rename(_beside(folder, _OLD))
            _beside(folder, _NEXT).rename(folder)

    def tidy(self) -> None:
        self._in_background(lambda: self._copy(BASELINE, _NEXT))

    def _copy(self, source: str, target: str) -> None:
        names = [f"FROM={source}", f"TO={target}", f"OLD={_OLD}"]
        _run(self.place, ["env", *names, "/bin/sh", "-c", _COPY, "sh", *map(str, self.folders)])


def _take(place: Folder) -> _LocalBaseline:
    folders = list(_written(place))
    if (layered := _Layered(place, folders)).begin():
        return layered
    copied = _Copied(place, folders)
    copied.begin()
    return copied


def _run(place: Folder, argv: Sequence[str]) -> None:
    """Run a command as the guard does.

    Raises:
        EphemeralError: It failed; says why.
    """
    done = client.run(place.control, argv, None, own=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise EphemeralError(f"the files that its processes wrote can't be saved: {said[0]}")


def _written(place: Folder) -> Iterator[Path]:
    """The folders that its processes write into; of those that run as another user, too."""
    yield place.state
    yield place.temporary
    states = place.path / STATES
    if states.is_dir():
        top = states.readlink()
        yield from sorted(one for one in top.iterdir() if not _BESIDE.fullmatch(one.name))


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(folder.name + ending)
