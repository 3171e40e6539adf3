"""Identify this machine and its processes, so that other processes can recognise them.

A process id is not enough: ids are reused, and differ between machines and PID namespaces. An
owner process is identified by machine, boot, PID namespace, process id and start time. If one of
the first three differs from those of this process, it is unknown whether the owner runs. Host names
are no help, as containers may share them. Cloned machines share everything but the boot.
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

#: The state folder of a user without a home, such as a uid without a name: CI servers start
#: containers with these. Its owner and permissions are checked.
_HOMELESS: Final = "/var/tmp/pytest-ephemeral-state-{uid}"  # noqa: S108


def home() -> Path:
    """The home folder of this user; ``/`` if there is none."""
    try:
        return Path.home()
    except RuntimeError:  # HOME is not set, and the uid has no entry in passwd
        return Path("/")


def state_directory() -> Path:
    """The folder for the state of this machine: running environments, logs of bakes.

    It is ``$PYTEST_EPHEMERAL_STATE``, or else ``pytest-ephemeral`` in ``$XDG_STATE_HOME`` (by the
    XDG Base Directory Specification, ``~/.local/state`` if that is not set). If this user can't
    write there, it is a folder in ``/var/tmp``.

    Raises:
        ConfigurationError: The folder in ``/var/tmp`` can be changed by other users.
    """
    if chosen := os.environ.get(STATE_VARIABLE):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_STATE_HOME") or home() / ".local" / "state"
    folder = Path(base).absolute() / "pytest-ephemeral"
    return folder if is_writable(folder) or not hasattr(os, "getuid") else _homeless_state()


def make_state_folder(folder: Path) -> None:
    """Create a folder in the state directory, if it does not exist.

    Raises:
        ConfigurationError: It can't be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the state folder {state_directory()} can't be written: {error.strerror}. Set "
            f"{STATE_VARIABLE} to a folder of this user's own"
        ) from error


def is_writable(folder: Path) -> bool:
    """Whether this user may write into a folder, or create it if it does not exist."""
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
    """This process, as the owner of the environments that it brings up.

    Args:
        run: The id of its run.
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
    """Whether an owner is of this machine and this PID namespace, in any boot."""
    return bool(owner.machine) and (owner.machine, owner.pid_namespace) == (
        machine_id(),
        pid_namespace(),
    )


def is_alive(owner: Owner) -> bool | None:
    """Whether an owner process still runs; None if that is unknown.

    It is unknown for another boot: that may be a clone of this machine, which has the same
    machine id. It is also unknown if this process or the owner can't see processes.
    """
    if not is_here(owner) or owner.boot != boot_id() or not owner.started or not sees_processes():
        return None
    return read_process_start(owner.pid) == owner.started


def process_of(owner: Owner) -> str:
    """A short text that identifies an owner process, for names, tags and labels.

    Returns:
        ``PID.BOOT.START``, where the last two are shortened digests; see ``is_gone``.
    """
    return f"{owner.pid}.{_boot_of(owner)}.{_short(owner.started)}"


def age(owner: Owner) -> float | None:
    """The time since an owner was recorded, by the clock since boot, which can't be changed.

    Returns:
        Seconds; None if it was recorded on another machine, in another boot or time namespace.
    """
    same_boot = owner.boot == boot_id() != "" and owner.machine == machine_id()
    same_clock = owner.pid_namespace.partition(" ")[2] == _time_namespace()
    if not same_boot or not same_clock or not owner.uptime:
        return None
    return uptime() - owner.uptime


def is_gone(process: str) -> bool:
    """Whether a process, given as a text from ``process_of``, has certainly ended.

    False if that is unknown: for another machine, boot or PID namespace, or for other texts.
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
    """The id of this machine. Only a clone of the machine has the same id.

    It is a digest of ``/etc/machine-id``, which machine-id(5) asks not to disclose. Without that
    file, as in most containers, it is a digest of the host name.
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
    """The PID namespace of this process; empty if the system has none.

    A time namespace other than the first one is added: there, ``/proc`` shows other start times of
    the same processes; see time_namespaces(7).
    """
    return " ".join(filter(None, (_namespace("pid"), _time_namespace())))


def _time_namespace() -> str:
    """The time namespace of this process; empty for the first one."""
    found = _namespace("time")
    return "" if found == _FIRST_TIME_NAMESPACE else found


def _namespace(kind: str) -> str:
    try:
        return str(Path("/proc/self/ns", kind).readlink())
    except OSError:
        return ""


def uptime() -> float:
    """Seconds since this machine's boot, with the time in sleep; 0 on Windows."""
    if sys.platform == "win32":
        return 0.0
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def boot_id() -> str:
    """The id of this machine's current boot; empty if the system has none."""
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
    """The start time of a process, as text in the system's unit; empty if there is none.

    A zombie counts as ended: only its exit status remains.
    """
    if sys.platform == "linux":
        try:
            # The second field is the program's name in parentheses, with any characters.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] in {"Z", "X"} else fields[19]
    import subprocess

    found = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return found.stdout.strip()


#: The first namespaces of Linux (PROC_PID_INIT_INO, PROC_TIME_INIT_INO in linux/proc_ns.h).
_FIRST_NAMESPACE, _FIRST_TIME_NAMESPACE = "pid:[4026531836]", "time:[4026531834]"


def is_contained() -> bool:
    """Whether this process is not in the first PID namespace, as in a container.

    In another namespace, all processes end with the first one.
    """
    return _namespace("pid") not in {"", _FIRST_NAMESPACE}
