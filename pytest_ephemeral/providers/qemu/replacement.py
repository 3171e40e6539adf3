"""Replace the QEMU process of a machine by another, under the same guard."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from pytest_ephemeral.providers.local import client, logs
from pytest_ephemeral.providers.qemu import qmp
from pytest_ephemeral.providers.qemu.machines import (
    CONSOLE,
    SINCE,
    MachineFolder,
    Start,
    exit_status,
    write_start,
)

#: Seconds that QEMU may take to end after ``quit``.
_QUIT: Final = 30.0


def replace_machine(place: MachineFolder, start: Start) -> None:
    """End the QEMU process, if it runs, and start another under the same guard.

    Args:
        place: The machine's folder; its disk is created again.
        start: How to start the new process.

    Raises:
        EphemeralError: The guard is gone, or QEMU does not end.
    """
    if exit_status(place) is None:
        with suppress(qmp.MachineError), qmp.open_monitor(place.path.name, place.state, 5.0) as old:
            old.call("quit")
    id = place.path.name
    _wait(lambda: exit_status(place) is not None, f"the QEMU process of {id} does not end")
    try:
        start.create_disk(place)
        client.status(place.control)  # the guard writes all output, so the log's end is final
        (place.state / SINCE).write_text(str(logs.end(place.logs, CONSOLE)))
        write_start(place, start, "next")
    except OSError as error:
        client.status(place.control)  # raises if the guard is gone, and the folder with it
        raise qmp.MachineError(f"the machine {id} can't be started again: {error}") from error
    _wait(lambda: _restart_loop(place), f"the guard of {id} does not start QEMU")
    files = [place.state / name for name in ("next", qmp.ENDED)]
    _wait(
        lambda: not any(file.exists() for file in files), f"the QEMU process of {id} does not start"
    )


def _restart_loop(place: MachineFolder) -> bool:
    """Make the shell loop start QEMU again; False if the loop does not read the pipe yet.

    Raises:
        EphemeralError: The machine's guard is gone.
    """
    client.status(place.control)
    try:
        again = os.open(place.state / "again", os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # ENXIO: nobody reads yet; or the folder was just removed
        return False
    try:
        os.write(again, b"\n")
    finally:
        os.close(again)
    return True


def _wait(is_done: Callable[[], bool], otherwise: str) -> None:
    """Wait until a condition is met, at most ``_QUIT`` seconds.

    Raises:
        MachineError: It is not met in time.
    """
    deadline = time.monotonic() + _QUIT
    while not is_done():
        if time.monotonic() > deadline:
            raise qmp.MachineError(otherwise)
        time.sleep(0.002)
