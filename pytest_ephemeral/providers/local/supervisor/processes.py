"""Start processes; find them and end them, with all their descendants."""

from __future__ import annotations

import _signal as signal  # see loop
import os
import stat
import sys
import time

from . import kernel, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

#: The exit statuses of a shell for a command that it can't find, or can't run.
_NOT_FOUND, _NOT_RUNNABLE = 127, 126

#: How often processes are listed at most, on a machine that starts new ones all the time.
_MOST_LISTS = 50

#: Seconds between checks whether killed processes have ended.
_REAPING = (0.0005, *[0.001] * 10)

#: Seconds to wait for a process in the middle of ``execve``, or of its exit.
_PATIENCE = 1.0


def spawn(
    argv: Sequence[str],
    *,
    directory: str,
    variables: Mapping[str, str],
    stdio: Sequence[int],
    account: Mapping[str, Any] | None = None,
) -> int:
    """Start a process in a session of its own; it is killed when this process dies.

    Args:
        argv: The program, which is searched in the ``PATH`` of ``variables``, and its arguments.
        directory: The working folder.
        variables: All environment variables.
        stdio: The descriptors for standard input, output and error.
        account: The ``uid``, ``gid`` and ``groups`` to run it with; None for this user.

    Returns:
        The process id. A program that can't be run exits with 126 or 127, as in a shell, and
        writes the reason to standard error.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        if account:
            _become(account, stdio)
        kernel.die_with(parent)  # after _become, as changing the user clears it: prctl(2)
        _reset(stdio)
        os.chdir(directory)
        os.execvpe(argv[0], list(argv), dict(variables))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        os.write(2, f"pytest-ephemeral: can't run {argv[0]}: {reason}\n".encode())
        os._exit(_NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_RUNNABLE)
    finally:
        os._exit(_NOT_RUNNABLE)


def _reset(stdio: Sequence[int]) -> None:
    """Set standard input, output and error, and restore the default signal handling."""
    for target, source in enumerate(stdio):
        os.dup2(source, target)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores these two
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


def _become(account: Mapping[str, Any], stdio: Sequence[int]) -> None:
    """Change to another user, and let that user open /dev/stdout."""
    os.get_exec_path({})  # imports a module, which the other user may be unable to read
    for descriptor in stdio[1:]:
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode) and os.geteuid() == 0:
            os.fchown(descriptor, account["uid"], account["gid"])
    if os.geteuid() == 0:
        os.setgroups(account["groups"])
        os.setgid(account["gid"])
        os.setuid(account["uid"])


def start_detached(argv: Sequence[str], *, without: str) -> None:
    """Start a command that outlives this process.

    Args:
        argv: The command.
        without: A variable of this process to leave out.
    """
    variables = {name: value for name, value in os.environ.items() if name != without}
    if os.fork() == 0:
        try:
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDWR)
            for target in range(3):
                os.dup2(nothing, target)
            os.execvpe(argv[0], list(argv), variables)
        finally:
            os._exit(_NOT_FOUND)


def descendants(ancestor: int) -> list[int]:
    """The ids of all descendants of a process."""
    children: dict[int, list[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    generation = children.get(ancestor, [])
    while generation:
        found += generation
        generation = [pid for parent in generation for pid in children.get(parent, [])]
    return found


def _parents() -> Iterator[tuple[int, int]]:
    """The ids of all processes, each with its parent's."""
    if sys.platform != "linux":
        with os.popen("ps -axo pid=,ppid=") as listing:  # noqa: S605
            for line in listing:
                yield tuple(map(int, line.split()))
        return
    for pid in procfs.list_pids():
        try:
            parent = procfs.read_fields(pid)[4]
        except OSError:
            continue
        yield pid, int(parent)


def find_marked(marker: str, mount: str = "") -> list[int]:
    """The processes with an environment's marks, except this process.

    Args:
        marker: ``NAME=value`` in a process's variables; a program may clear them.
        mount: The file that ``view.protect`` has mounted, which a process can't hide.

    Returns:
        The ids of those that this user may inspect; empty on systems without ``/proc``.
    """
    found: list[int] = []
    known = {os.getpid()}
    # A process may fork and exit while this runs: it is gone, and its child not listed yet. So
    # list again until there are no new processes.
    for _ in range(_MOST_LISTS):
        fresh = [pid for pid in procfs.list_pids() if pid not in known]
        if not fresh:
            break
        known.update(fresh)
        found += [pid for pid in fresh if _is_marked(pid, marker, mount)]
    return found


def _is_marked(pid: int, marker: str, mount: str) -> bool:
    return _has(pid, marker.encode()) or bool(mount and _sees(pid, mount))


def _sees(pid: int, mount: str) -> bool:
    """Whether a path is a mount point in a process's mount namespace, if that is another."""
    try:
        if os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt"):
            return False
        lines = procfs.read(pid, "mountinfo").splitlines()
    except OSError:
        return False
    return any(line.split(b" ", 5)[4] == kernel.escape(mount) for line in lines)


def find_users(folder: str) -> list[int]:
    """The processes whose working folder is in a folder, as far as this user can see them."""
    found = []
    for pid in procfs.list_pids():
        try:
            current = os.readlink(f"/proc/{pid}/cwd")
        except OSError:
            continue
        if current == folder or current.startswith(folder + "/"):
            found.append(pid)
    return found


def _has(pid: int, marker: bytes) -> bool:
    deadline = time.monotonic() + _PATIENCE
    try:
        while not (environment := _read_environment(pid)):
            if not _is_between(pid) or time.monotonic() > deadline:
                return False
            time.sleep(0)
    except OSError:
        return False
    return marker in environment.split(b"\0")


def _read_environment(pid: int) -> bytes:
    try:
        return procfs.read(pid, "environ")
    except ProcessLookupError:
        return b""  # newer kernels: the process has no memory any more


def _is_between(pid: int) -> bool:
    """Whether a process with empty variables is in the middle of ``execve``, or of its exit.

    In the middle of ``execve``, a process has new memory but no variables in it: Linux sets
    ``env_start`` and then ``start_code`` some time after ``exec_mmap``. Kernel threads and zombies
    have no memory. A program that was started without variables has an ``env_end`` equal to
    ``env_start``. An exiting process has no memory either, but still has its sockets and files
    while it frees the memory (``do_exit``); it is waited for, as it may be one that was killed.
    """
    fields = procfs.read_fields(pid)
    # state, vsize, startcode, env_start, env_end
    state, memory, code, start, end = (fields[number] for number in (3, 23, 26, 50, 51))
    if memory == b"0":
        return procfs.is_exiting(fields) and state not in {b"Z", b"X"}
    return code == b"0" or start != end


def _signal(pid: int, number: int) -> None:
    """Send a signal to a process, unless it is gone, or belongs to another user."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def kill_tree(ancestor: int) -> None:
    """Kill a process and its descendants; stop all first, so that none can start more."""
    stopped: set[int] = set()
    while fresh := {ancestor, *descendants(ancestor)} - stopped:
        for pid in fresh:
            _signal(pid, signal.SIGSTOP)
        stopped |= fresh
    for pid in stopped:
        _signal(pid, signal.SIGKILL)


def kill_marked(marker: str, mount: str = "") -> list[int]:
    """Kill all marked processes, and return their ids; see ``find_marked``."""
    found = find_marked(marker, mount)
    for pid in found:
        try:
            handle = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            if _is_marked(pid, marker, mount):  # check again: the id can't be reused from now on
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        except OSError:
            pass
        finally:
            os.close(handle)
    return found


def end_marked(marker: str, mount: str = "", patience: float = 5.0) -> list[int]:
    """Kill all marked processes until none are left.

    Args:
        marker: See ``find_marked``.
        mount: See ``find_marked``.
        patience: Seconds after which to give up.

    Returns:
        The ids of those that could not be killed.
    """
    deadline = time.monotonic() + patience
    while (left := kill_marked(marker, mount)) and time.monotonic() < deadline:
        time.sleep(0.002)
    return left


def end_descendants(marker: str, groups: Sequence[int] = (), patience: float = 5.0) -> list[int]:
    """Kill all descendants of this process, and all processes with its marker.

    A killed process can't fork, and its children become children of this process, which is their
    subreaper. So each round finds the processes that the last one has missed, and the rounds end.

    Args:
        marker: ``NAME=value``, to find processes that have another subreaper.
        groups: The ids of processes that ``spawn`` started. On systems without subreapers, their
            process groups are used to find orphans.
        patience: Seconds after which to give up.

    Returns:
        The ids of those that could not be killed.
    """
    deadline = time.monotonic() + patience
    while True:
        left = descendants(os.getpid())
        for pid in left:
            _signal(pid, signal.SIGKILL)
        for group in groups if sys.platform != "linux" else ():
            _signal(-group, signal.SIGKILL)
        left = kill_marked(marker) if _collect_children() else left
        if not left or time.monotonic() > deadline:
            return left


def _collect_children() -> bool:
    """Reap children that end now; return whether none are left."""
    for pause in _REAPING:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        time.sleep(pause)
    return False


def reap() -> tuple[int, int] | None:
    """Reap one ended child; return its id and exit status, negative for a signal; or None."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, os.waitstatus_to_exitcode(status)) if pid else None
