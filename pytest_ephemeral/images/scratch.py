"""Temporary files for archives on their way."""

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
    """A temporary file for an archive; those of processes that were killed are removed.

    Of processes of other containers that share this folder, and of other boots, nothing is known:
    what they have left is removed when nobody has written to it for a day.
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
