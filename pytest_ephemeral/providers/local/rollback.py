"""Roll back a local environment: restore its files, and start its processes again.

The baseline is the processes' files when they are ready and seeded. If the kernel allows it, the
baseline is the lower layer of an overlay mount, and a rollback mounts a new upper layer. If not, it
is copied, and the next copy is made while tests run, so that a rollback only renames folders. A
process of the guard makes the copies, so it ends with the environment.
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

#: Seconds that processes get to stop before the baseline is taken, if the template has no grace. A
#: killed database would begin with a recovery after each rollback.
GRACE: Final = 10.0

#: The endings of copies beside a folder: the next one, and the last one.
_NEXT, _OLD = ".next", ".old"
_BESIDE: Final = re.compile(rf".*({BASELINE}|{_NEXT}|{_OLD}|{UPPER}\d+|{WORK}\d+)")

#: Copies folders with all attributes; by reflink on file systems that support it (XFS, Btrfs).
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
    """The part of the local provider that rolls environments back; see ``SupportsRollback``."""

    def check_rollback(self, template: Template, root: Path, /) -> None:  # noqa: ARG002
        """Refuse databases outside: only ``$STATE`` and ``$TMPDIR`` are rolled back."""
        assert isinstance(template, LocalTemplate)
        commands = template.processes().values()
        external_state.refuse_databases(template, dict(os.environ), commands=commands)

    def take_baseline(self, order: Order, /) -> Environment:
        """Stop the processes, keep their files, and start them again."""
        place, template = Folder.of_environment(order.environment), order.template
        assert isinstance(template, LocalTemplate)
        grace = float(template.grace or GRACE)
        signal = signals.number_of(template.stop_signal)
        client.stop(place.control, grace, signal, keep_guard=True)
        _baselines[order.environment.id] = _make_baseline(place)
        client.start(place.control)
        return order.environment

    def roll_back(self, order: Order, /) -> Environment:
        """Kill the processes, restore the files of the baseline, and start them again."""
        place, baseline = Folder.of_environment(order.environment), _baselines[order.environment.id]
        baseline.prepare()
        client.stop(place.control, keep_guard=True)
        baseline.put_back()
        client.start(place.control)
        baseline.tidy()
        return order.environment


class _LocalBaseline:
    """The baseline of an environment.

    Attributes:
        place: The environment's folder.
        folders: The folders that its processes write to.
    """

    def __init__(self, place: Folder, folders: Sequence[Path]) -> None:
        self.place = place
        self.folders = folders
        self._problem: EphemeralError | None = None
        self._thread: threading.Thread | None = None

    def prepare(self) -> None:
        """Wait until the next rollback is prepared.

        Raises:
            EphemeralError: The preparation failed.
        """
        if self._thread is not None:
            self._thread.join()
        if self._problem is not None:
            raise self._problem

    def put_back(self) -> None:
        """Restore the baseline for processes that are started from now on."""
        raise NotImplementedError

    def tidy(self) -> None:
        """Remove the old files, and prepare the next rollback, in the background."""
        raise NotImplementedError

    def _in_background(self, act: Callable[[], None]) -> None:
        def run() -> None:
            try:
                act()
            except EphemeralError as error:
                self._problem = error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()


#: The baselines of the environments that this process has launched, by id.
_baselines: dict[str, _LocalBaseline] = {}


class _LayeredBaseline(_LocalBaseline):
    """A baseline that is the lower layer of overlay mounts."""

    _number = 0

    def begin(self) -> bool:
        """Mount the first layer over it; False if that is not possible, with nothing changed."""
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


class _CopiedBaseline(_LocalBaseline):
    """A baseline that is copied for each rollback."""

    def begin(self) -> None:
        """Make the first copy.

        Raises:
            EphemeralError: The files can't be copied.
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


def _make_baseline(place: Folder) -> _LocalBaseline:
    folders = list(_find_written_folders(place))
    if (layered := _LayeredBaseline(place, folders)).begin():
        return layered
    copied = _CopiedBaseline(place, folders)
    copied.begin()
    return copied


def _run(place: Folder, argv: Sequence[str]) -> None:
    """Run a command by the guard, as the guard's own user.

    Raises:
        EphemeralError: It failed; the message has its last line.
    """
    done = client.run(place.control, argv, None, own=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise EphemeralError(f"the files that its processes wrote can't be saved: {reason[0]}")


def _find_written_folders(place: Folder) -> Iterator[Path]:
    """The folders that an environment's processes write to, with those of other users."""
    yield place.state
    yield place.temporary
    states = place.path / STATES
    if states.is_dir():
        top = states.readlink()
        yield from sorted(one for one in top.iterdir() if not _BESIDE.fullmatch(one.name))


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(folder.name + ending)
