"""This machine and this process, as others can recognise them.

A process id alone says little: ids are reused, and mean nothing on another machine or in another
PID namespace. An owner is recognised by machine, boot, namespace, process id and the process's
start together. Where one of the first three differs, nothing is known of it: host names are shared
by containers, and everything but the boot by cloned machines.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from functools import cache
from pathlib import Path
from typing import Final

from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.models import Owner

STATE_VARIABLE = "PYTEST_EPHEMERAL_STATE"

#: Where the state is of a user who has no home: a uid without a name, as CI servers start
#: containers with. Its owner and mode are checked.
_HOMELESS: Final = "/var/tmp/pytest-ephemeral-state-{uid}"  # noqa: S108


def home() -> Path:
    """The folder of this user; ``/`` where the system knows none."""
    try:
        return Path.home()
    except RuntimeError:  # HOME is not set, and the uid has no entry in passwd
        return Path("/")


def state_directory() -> Path:
    """Where this machine keeps what is not shared: running environments, logs of bakes.

    ``$PYTEST_EPHEMERAL_STATE``, or ``pytest-ephemeral`` under ``$XDG_STATE_HOME``
    (``~/.local/state``, as the XDG Base Directory Specification says), or a folder under
    ``/var/tmp`` where this user has no home that can be written.

    Raises:
        ConfigurationError: That one belongs to somebody else.
    """
    if chosen := os.environ.get(STATE_VARIABLE):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_STATE_HOME") or home() / ".local" / "state"
    folder = Path(base).absolute() / "pytest-ephemeral"
    return folder if is_writable(folder) or not hasattr(os, "getuid") else _homeless_state()


def is_writable(folder: Path) -> bool:
    """Whether this user may write into a folder, or make it if it is not there."""
    there = next((one for one in (folder, *folder.parents) if one.is_dir()), Path("/"))
    return os.access(there, os.W_OK | os.X_OK)


def _homeless_state() -> Path:
    uid = os.geteuid()
    folder = Path(_HOMELESS.format(uid=uid))
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != uid or stat.S_IMODE(status.st_mode) != 0o700:
        raise ConfigurationError(
            f"this user has no writable home folder, and other users can change {folder}: set "
            f"{STATE_VARIABLE} to a folder of this user's own"
        )
    return folder


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
        machine=machine_id(),
        pid_namespace=pid_namespace(),
        pid=os.getpid(),
        started=read_process_start(os.getpid()),
        run=run,
        uptime=uptime(),
    )


def is_here(owner: Owner) -> bool:
    """Whether the owner was started on this machine and in this PID namespace, in any boot."""
    return bool(owner.machine) and (owner.machine, owner.pid_namespace) == (
        machine_id(),
        pid_namespace(),
    )


def is_alive(owner: Owner) -> bool | None:
    """Whether the owner still runs; None when that can't be told from here.

    Of another boot nothing is known: a clone of this machine has its id, and not its boot. Nor is
    anything known where either side can't see processes.
    """
    if not is_here(owner) or owner.boot != boot_id() or not owner.started or not sees_processes():
        return None
    return read_process_start(owner.pid) == owner.started


def process_of(owner: Owner) -> str:
    """An owner's process in few characters, as names, tags and labels may have it.

    Returns:
        ``PID.BOOT.START``, the latter two as digests: see ``is_gone``.
    """
    return f"{owner.pid}.{_boot_of(owner)}.{_short(owner.started)}"


def age(owner: Owner) -> float | None:
    """Seconds since an owner was written down, by a clock that nobody can set.

    Returns:
        None when that can't be told: it was written on another machine, or in another boot.
    """
    same_boot = owner.boot == boot_id() != "" and owner.machine == machine_id()
    if not same_boot or not owner.uptime:
        return None
    return uptime() - owner.uptime


def is_gone(process: str) -> bool:
    """Whether a process that ``process_of`` named is known to run no more.

    Of another machine's, boot's or PID namespace's, and of what was not written by ``process_of``,
    nothing is known.
    """
    pid, _, rest = process.partition(".")
    if not pid.isdigit() or not rest.startswith(f"{_boot_of(this_owner(''))}."):
        return False
    if not sees_processes():
        return False
    started = read_process_start(int(pid))
    return not started or rest.partition(".")[2] != _short(started)


def _boot_of(owner: Owner) -> str:
    return _short(owner.machine, owner.boot, owner.pid_namespace)


def _short(*texts: str) -> str:
    import hashlib

    return hashlib.sha256("|".join(texts).encode()).hexdigest()[:10]


@cache
def machine_id() -> str:
    """This machine's own id, as no other machine has it unless it was cloned from this one.

    A digest of ``/etc/machine-id``, which machine-id(5) asks not to show as it is; where there is
    none, as in most containers, of the host name.
    """
    import socket

    for file in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        try:
            if found := file.read_text().strip():
                return _short("pytest-ephemeral", found)
        except OSError:
            continue
    return _short("host", socket.gethostname())


def pid_namespace() -> str:
    """Where this process's ids mean something; empty where there are no such namespaces."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def uptime() -> float:
    """Seconds since this machine's boot, asleep ones included; 0 where the system can't tell."""
    if sys.platform == "win32":
        return 0.0
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def boot_id() -> str:
    """A name for this boot of this machine; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def sees_processes() -> bool:
    """Whether ``/proc`` is there and shows this PID namespace; in a chroot, it may do neither."""
    if sys.platform != "linux":
        return True
    try:
        return Path("/proc/self").readlink().name == str(os.getpid())
    except OSError:
        return False


def read_process_start(pid: int) -> str:
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


#: Linux's number of the first PID namespace (PROC_PID_INIT_INO in include/linux/proc_ns.h).
_FIRST_NAMESPACE = "pid:[4026531836]"


def is_contained() -> bool:
    """Whether this process is in a PID namespace of its own: its first process ends all others."""
    try:
        return Path("/proc/self/ns/pid").readlink().name != _FIRST_NAMESPACE
    except OSError:
        return False
