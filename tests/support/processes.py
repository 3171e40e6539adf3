"""Run programs until they end, and find processes by their variables."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

#: The program of the command line, which is installed beside this Python.
PROGRAM: Final = Path(sys.executable).with_name("pytest-ephemeral")


def run(
    *argv: str | Path,
    folder: Path | None = None,
    environ: Mapping[str, str] | None = None,
    user: int | None = None,
    status: int | None = 0,
    timeout: float = 170,
) -> subprocess.CompletedProcess[str]:
    """Run a program, and wait until it ends.

    Args:
        argv: The program and its arguments.
        folder: The working directory; by default the current one.
        environ: All environment variables; by default those of this process.
        user: The uid and gid; by default those of this process.
        status: The required exit status; None for any.
        timeout: Seconds after which the program is killed, and the test fails.

    Returns:
        The exit status and the output.
    """
    try:
        done = subprocess.run(
            argv,
            cwd=folder,
            env=environ,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        printed = b"".join(filter(None, (late.stdout, late.stderr)))
        raise AssertionError(f"{late}\n{printed.decode(errors='replace')}") from None
    assert status in (None, done.returncode), f"{argv}\n{done.stdout}\n{done.stderr}"
    return done


def run_python(code: str) -> str:
    """Run code in a new Python, and return its output."""
    return run(sys.executable, "-c", code, timeout=60).stdout


def with_variable(*starts: str) -> list[int]:
    """The ids of other processes that have a variable that starts with one of the texts.

    A text is like ``NAME=value``. Processes are found in Linux's process table, also those
    that other programs started.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended, or is another user's
        if any(one.startswith(tuple(map(str.encode, starts))) for one in variables):
            found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


def command_of(pid: int) -> bytes:
    """The command line of a process, each word ended by a null byte; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
