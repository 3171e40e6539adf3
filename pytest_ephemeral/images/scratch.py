"""Temporary files for archives."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pytest_ephemeral import machine

_DAY: Final = 86400.0


@contextmanager
def scratch_file() -> Iterator[Path]:
    """A temporary file for an archive. Also removes the files of processes that were killed.

    It is unknown whether the processes of another container or of an earlier boot are alive. Their
    files are removed a day after they were last changed.
    """
    folder = machine.state_directory() / "transfers"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        with suppress(FileNotFoundError):
            is_old = left.stat().st_mtime < time.time() - _DAY
            if is_old or machine.is_gone(left.name.partition("-")[0]):
                left.unlink()
    process = machine.process_of(machine.this_owner(""))
    file = folder / f"{process}-{os.urandom(4).hex()}"
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)
