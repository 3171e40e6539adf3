"""This machine and this process, as others can recognise them.

A process id alone says little: ids are reused, and mean nothing on another machine. An owner is
recognised by machine, boot, process id and the process's start together.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pytest_ephemeral.models import Owner

STATE_VARIABLE = "PYTEST_EPHEMERAL_STATE"


def state_directory() -> Path:
    """Where this machine keeps what is not shared: running environments, logs of bakes.

    ``$PYTEST_EPHEMERAL_STATE``, or ``pytest-ephemeral`` under ``$XDG_STATE_HOME``
    (``~/.local/state``, as the XDG Base Directory Specification says).
    """
    if chosen := os.environ.get(STATE_VARIABLE):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base).absolute() / "pytest-ephemeral"


def this_owner(run: str) -> Owner:
    """The process that is asking, as the owner of what it brings up.

    Args:
        run: The id of the run it is part of.
    """
    import getpass
    import socket

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may have a uid without a name
        user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    return Owner(
        user=user,
        host=socket.gethostname(),
        boot=boot_id(),
        pid=os.getpid(),
        started=process_started(os.getpid()),
        run=run,
    )


def is_here(owner: Owner) -> bool:
    """Whether the owner was started on this machine, since its last boot or before."""
    import socket

    return owner.host == socket.gethostname()


def is_alive(owner: Owner) -> bool | None:
    """Whether the owner still runs; None when that can't be told from here."""
    if not is_here(owner):
        return None
    if owner.boot != boot_id():
        return False
    return process_started(owner.pid) == owner.started != ""


def process_of(owner: Owner) -> str:
    """An owner's process in few characters, as names, tags and labels may have it.

    Returns:
        ``PID.HOST.START``, the latter two as digests: see ``is_gone``.
    """
    return f"{owner.pid}.{_short(owner.host)}.{_short(owner.boot, owner.started)}"


def is_gone(process: str) -> bool:
    """Whether a process that ``process_of`` named is known to run no more.

    Of another machine's, and of what was not written by ``process_of``, nothing is known.
    """
    import socket

    pid, _, rest = process.partition(".")
    if not pid.isdigit() or not rest.startswith(f"{_short(socket.gethostname())}."):
        return False
    started = process_started(int(pid))
    return not started or rest.partition(".")[2] != _short(boot_id(), started)


def _short(*texts: str) -> str:
    import hashlib

    return hashlib.sha256("|".join(texts).encode()).hexdigest()[:10]


def boot_id() -> str:
    """A name for this boot of this machine; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def process_started(pid: int) -> str:
    """When a process started, in the system's own terms; empty when there is no such process.

    A zombie is no longer running: it holds nothing but its exit status.
    """
    if sys.platform == "linux":
        try:
            # The second field is the program's name in brackets and may hold anything.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] in {"Z", "X"} else fields[19]
    import subprocess

    found = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return found.stdout.strip()
