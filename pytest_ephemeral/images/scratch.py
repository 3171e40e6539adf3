"""Temporary files for archives on their way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_ephemeral import machine


@contextmanager
def scratch_file() -> Iterator[Path]:
    """A temporary file for an archive; those of processes that were killed are removed."""
    folder = machine.state_directory() / "transfers"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        pid = left.name.partition("-")[0]
        if pid.isdigit() and not machine.read_process_start(int(pid)):
            left.unlink(missing_ok=True)
    file = folder / f"{os.getpid()}-{os.urandom(4).hex()}"
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)
