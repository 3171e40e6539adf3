"""What Python's standard library does not offer of Linux: prctl, namespaces, bind mounts."""

from __future__ import annotations

import ctypes
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
_LINUX = sys.platform == "linux"
_libc = ctypes.CDLL(None, use_errno=True)


def uptime() -> float:
    """Seconds by a clock that nobody can set, those in which the machine slept included."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, instead of process 1."""
    if _LINUX:
        _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def die_with(parent: int) -> None:
    """In a child just forked: be killed when ``parent`` dies, or now if it has already."""
    if _LINUX:
        _check(_libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0))
        if os.getppid() != parent:
            os._exit(1)


def protect(paths: list[str], mark: str = "", places: Mapping[str, str] | None = None) -> str:
    """Give this process and its children a view in which these trees are read-only.

    Args:
        paths: Folders or files that exist in that view.
        mark: A file that is mounted onto itself in that view: ``/proc/PID/mountinfo`` of all that
            is started in it says so, whatever becomes of its variables and its parent.
        places: Trees that are seen somewhere else in that view, by where; see ``placing``.

    Returns:
        Why the kernel does not allow it; empty when it is done.
    """
    if not paths and (not _LINUX or os.geteuid() != 0):
        return ""  # a user namespace would take more from the application than it is worth
    if not _LINUX:
        return "only Linux has mount namespaces"
    view = View(paths, mark, places or {})
    if _libc.unshare(_CLONE_NEWNS) == 0:
        failed = view.make()
    else:
        failed = _protect_as_user(view) if paths else 0
    return os.strerror(failed) if failed else ""


def mount_layer(lower: str, upper: str, work: str, target: str) -> None:
    """Show a folder that is written to in another one's place, and that one below it.

    Args:
        lower: What lies below, and is not changed.
        upper: What is written.
        work: An empty folder that the kernel needs.
        target: Where both are seen.
    """
    # Off: what makes a layer depend on the one below it in ways that outlive the mount.
    options = f"lowerdir={lower},upperdir={upper},workdir={work},index=off,metacopy=off"
    if os.geteuid() != 0:
        options += ",userxattr"  # in a user namespace, others can't be written: overlayfs.rst
    flags = _MS_NOSUID | _MS_NODEV
    mounted = _libc.mount(b"overlay", os.fsencode(target), b"overlay", flags, os.fsencode(options))
    _check(mounted)


def is_mounted(path: str) -> bool:
    """Whether something is mounted there in this process's view."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            return any(line.split(b" ", 5)[4] == escape(path) for line in file)
    except OSError:
        return False


def escape(path: str) -> bytes:
    """A path as ``mountinfo`` has it: proc(5)."""
    return os.fsencode("".join(f"\\{ord(one):03o}" if one in " \t\n\\" else one for one in path))


def unmount(path: str) -> None:
    """Take a mount out of this process's view, so that what it covers can be removed."""
    if _LINUX:
        _libc.umount2(os.fsencode(path), _MNT_DETACH)


def _protect_as_user(view: View) -> int:
    """The same in a user namespace, which needs no privileges; 0, or the error's number."""
    # One that was entered but may not be set up (AppArmor does that on Ubuntu 24.04) leaves a
    # process without a user. So a child tries it first.
    pid = os.fork()
    if pid == 0:
        os._exit(_enter(view))
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) or _enter(view)


def _enter(view: View) -> int:
    user, group = os.geteuid(), os.getegid()
    try:
        _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS))
        # user_namespaces(7): without CAP_SETGID, setgroups has to be given up before a gid is
        # mapped.
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        return error.errno or 1
    return view.make()


class View:
    """What a mount namespace shows besides what all see; see ``protect``."""

    def __init__(self, paths: Sequence[str], mark: str, places: Mapping[str, str]) -> None:
        self._paths = paths
        self._mark = mark
        self._places: list[tuple[str, str, str]] = []
        if places:
            from . import placing

            self._places = [(t, path, placing.find_base(path)) for path, t in places.items()]

    def make(self) -> int:
        """Make it, in a mount namespace of this process's own; 0, or the error's number."""
        try:
            _check(_libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None))
            if self._places:
                from . import placing

                for tree, path, base in self._places:
                    placing.place(tree, path, base)
            if self._mark:
                bind(self._mark, self._mark)
            for path in self._paths:
                _make_read_only(os.fsencode(path))
        except OSError as error:
            return error.errno or 1
        return 0


def bind(source: str, target: str) -> None:
    """Show a folder or a file, with what is mounted in it, at another path too."""
    source_path, target_path = os.fsencode(source), os.fsencode(target)
    _check(_libc.mount(source_path, target_path, None, _MS_BIND | _MS_REC, None))


def mount_empty(path: str, mode: int) -> None:
    """Cover a folder with an empty one, in memory."""
    options = f"mode={mode:o}".encode()
    flags = _MS_NOSUID | _MS_NODEV
    _check(_libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", flags, options))


def _make_read_only(path: bytes) -> None:
    _check(_libc.mount(path, path, None, _MS_BIND | _MS_REC, None))
    # What a mount has of these, its remount has to repeat, or the kernel refuses it
    # (mount_namespaces(7), "locked"). All but one have the same value in statvfs(3) and mount(2).
    same = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME
    flags = os.statvfs(path).f_flag
    keep = flags & same | (_MS_RELATIME if flags & os.ST_RELATIME else 0)
    _check(_libc.mount(b"none", path, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | keep, None))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
