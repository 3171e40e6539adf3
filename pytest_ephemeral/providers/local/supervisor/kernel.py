"""Linux system calls that Python's standard library lacks: prctl, unshare, mount."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SIGKILL = 9

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000

_MS_RDONLY = 1
_MS_NOSUID = 2
_MS_NODEV = 4
_MS_REMOUNT = 32
_MS_BIND = 4096
_MS_REC = 16384
_MS_SLAVE = 1 << 19
_MS_RELATIME = 1 << 21
_MNT_DETACH = 2
IS_LINUX = sys.platform == "linux"
_libc = ctypes.CDLL(None, use_errno=True)


def uptime() -> float:
    """Seconds by a clock that can't be set, and that includes the time of suspension."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, instead of process 1."""
    if IS_LINUX:
        _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def die_with(parent: int) -> None:
    """In a forked child: be killed when ``parent`` dies; exit now if it has died already."""
    if IS_LINUX:
        _check(_libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0))
        if os.getppid() != parent:
            os._exit(1)


def mount_layer(lower: str, upper: str, work: str, target: str) -> None:
    """Mount an overlay file system.

    Args:
        lower: The lower folder, which is not changed.
        upper: The folder that changes are written to.
        work: An empty folder that the kernel needs.
        target: The mount point.
    """
    # Off: features by which an upper layer would depend on its lower layer after the mount.
    options = f"lowerdir={lower},upperdir={upper},workdir={work},index=off,metacopy=off"
    if os.geteuid() != 0:
        options += ",userxattr"  # the only xattrs that a user namespace can write: overlayfs.rst
    flags = _MS_NOSUID | _MS_NODEV
    # Volatile (since Linux 5.10): neither fsync nor unmounting syncs the file system below. Layers
    # are not needed after a crash.
    for tried in (f"{options},volatile", options):
        data = os.fsencode(tried)
        mounted = _libc.mount(b"overlay", os.fsencode(target), b"overlay", flags, data)
        if mounted == 0 or ctypes.get_errno() != errno.EINVAL:
            break
    _check(mounted)


def is_mounted(path: str) -> bool:
    """Whether a path is a mount point in this process's mount namespace."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            return any(line.split(b" ", 5)[4] == escape(path) for line in file)
    except OSError:
        return False


def escape(path: str) -> bytes:
    """A path in the form of ``mountinfo``: proc(5)."""
    return os.fsencode("".join(f"\\{ord(one):03o}" if one in " \t\n\\" else one for one in path))


def unmount(path: str) -> None:
    """Unmount a path in this process's mount namespace, if it is mounted."""
    if IS_LINUX:
        _libc.umount2(os.fsencode(path), _MNT_DETACH)


def unshare_mounts() -> bool:
    """Create a mount namespace for this process; return whether that is permitted."""
    return bool(_libc.unshare(_CLONE_NEWNS) == 0)


def unshare_user_and_mounts() -> None:
    """Create a mount namespace in a new user namespace, which needs no privileges.

    Raises:
        OSError: The kernel does not allow it.
    """
    user, group = os.geteuid(), os.getegid()
    _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS))
    # user_namespaces(7): without CAP_SETGID, setgroups must be denied before a gid is mapped.
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def receive_mounts() -> None:
    """Receive later mounts of other namespaces, without sharing the mounts of this one."""
    _check(_libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None))


def bind(source: str, target: str) -> None:
    """Mount a folder or a file, with all mounts in it, at another path."""
    source_path, target_path = os.fsencode(source), os.fsencode(target)
    _check(_libc.mount(source_path, target_path, None, _MS_BIND | _MS_REC, None))


def mount_empty(path: str, mode: int) -> None:
    """Mount an empty file system in memory over a folder."""
    options = f"mode={mode:o}".encode()
    flags = _MS_NOSUID | _MS_NODEV
    _check(_libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", flags, options))


def make_read_only(folder: str) -> None:
    """Make a folder or file, with all mounts in it, read-only in this mount namespace."""
    path = os.fsencode(folder)
    _check(_libc.mount(path, path, None, _MS_BIND | _MS_REC, None))
    # A remount must repeat these flags of a mount, or the kernel refuses it (mount_namespaces(7),
    # "locked"). All but one have the same value in statvfs(3) and mount(2).
    same = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME
    flags = os.statvfs(path).f_flag
    keep = flags & same | (_MS_RELATIME if flags & os.ST_RELATIME else 0)
    _check(_libc.mount(b"none", path, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | keep, None))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
