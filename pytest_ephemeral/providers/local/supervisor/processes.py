"""Start processes, and end them with everything they have started."""

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

#: What a shell exits with when it can't find, or can't run, a command.
_NOT_FOUND, _NOT_RUNNABLE = 127, 126

#: How often all processes are listed for one look, on a machine that starts one all the time.
_MOST_LISTS = 50

#: Seconds between looks at whether what was killed has ended, which is sooner than more is found.
_REAPING = (0.0005, *[0.001] * 10)

#: Seconds that a program may take to be put in another's place, of what has to be read from disk;
#: and that one may take to end.
_PATIENCE = 1.0


def spawn(
    argv: Sequence[str],
    *,
    directory: str,
    variables: Mapping[str, str],
    stdio: Sequence[int],
    account: Mapping[str, Any] | None = None,
) -> int:
    """Start a process in a session of its own, to be killed when this one dies.

    Args:
        argv: The program, looked for in the ``PATH`` of ``variables``, and its arguments.
        directory: Where it starts.
        variables: Its whole environment.
        stdio: Descriptors for its input, output and errors.
        account: Has the ``uid``, ``gid`` and ``groups`` of who it runs as; None for this user.

    Returns:
        Its process id. A program that can't be run exits as under a shell, with 126 or 127, and
        says why on its standard error.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        if account:
            _become(account, stdio)
        kernel.die_with(parent)  # behind that, which would undo it: prctl(2)
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
    """Take these descriptors, and the signals' own meanings."""
    for target, source in enumerate(stdio):
        os.dup2(source, target)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores these two
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


def _become(account: Mapping[str, Any], stdio: Sequence[int]) -> None:
    """Be another user from now on, who may also open /dev/stdout."""
    os.get_exec_path({})  # it imports, and that user may not be able to read Python's library
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
        without: A variable of this process that it does not get.
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
    """The process ids of all that a process has started, and that those have."""
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
    """Every process and its parent."""
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
    """The processes, this one aside, that are marked.

    Args:
        marker: ``NAME=value``, in a process's variables; a program may clear those.
        mount: What ``view.protect`` has mounted in a process's view, which it can't clear.

    Returns:
        Those of them that this user may look into; always empty where there is no ``/proc``.
    """
    found: list[int] = []
    known = {os.getpid()}
    # One that forks and exits while this looks is gone, and its child is not in the list yet. So
    # the look is over only when no process has been started since the last list.
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
    """Whether something is mounted there in a process's view."""
    try:
        if os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt"):
            return False
        lines = procfs.read(pid, "mountinfo").splitlines()
    except OSError:
        return False
    return any(line.split(b" ", 5)[4] == kernel.escape(mount) for line in lines)


def find_users(folder: str) -> list[int]:
    """The processes that have their current folder in a folder, as far as this user may see."""
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
        return b""  # newer kernels say so of what has no memory any more


def _is_between(pid: int) -> bool:
    """Whether a process whose environment was just read as empty is about to have one, or to end.

    In the middle of ``execve`` a process has its new memory and no environment in it: Linux says
    where that is, and then where the code is, some time after ``exec_mmap``. Kernel threads and
    zombies have no memory; a program that was given no variables has an environment that ends
    where it begins. One that is ending has no memory either, and its sockets and files for as long
    as it takes to give that back (``do_exit``); it is waited for, as it may be one that was killed.
    """
    fields = procfs.read_fields(pid)
    # state, vsize, startcode, env_start, env_end
    state, memory, code, start, end = (fields[number] for number in (3, 23, 26, 50, 51))
    if memory == b"0":
        return procfs.is_exiting(fields) and state not in {b"Z", b"X"}
    return code == b"0" or start != end


def _signal(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone already, or belong to someone else."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def kill_tree(ancestor: int) -> None:
    """SIGKILL a process and all that it has started, before any of it can start more."""
    stopped: set[int] = set()
    while fresh := {ancestor, *descendants(ancestor)} - stopped:
        for pid in fresh:
            _signal(pid, signal.SIGSTOP)
        stopped |= fresh
    for pid in stopped:
        _signal(pid, signal.SIGKILL)


def kill_marked(marker: str, mount: str = "") -> list[int]:
    """SIGKILL all marked processes, and say which there were; see ``marked``."""
    found = find_marked(marker, mount)
    for pid in found:
        try:
            handle = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            if _is_marked(pid, marker, mount):  # still the same one: its id can't be reused now
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        except OSError:
            pass
        finally:
            os.close(handle)
    return found


def end_marked(marker: str, mount: str = "", patience: float = 5.0) -> list[int]:
    """Kill all marked processes until there are none.

    Args:
        marker: ``NAME=value``; see ``marked``.
        mount: See ``marked``.
        patience: Seconds after which to give up.

    Returns:
        Those that could not be killed.
    """
    deadline = time.monotonic() + patience
    while (left := kill_marked(marker, mount)) and time.monotonic() < deadline:
        time.sleep(0.002)
    return left


def end_descendants(marker: str, groups: Sequence[int] = (), patience: float = 5.0) -> list[int]:
    """Kill all that this process has started, and all with its marker, until there are none.

    A process that is being killed no longer forks, and its children become this one's, which is
    their subreaper: so every round finds what the last one has missed, and the rounds end.

    Args:
        marker: ``NAME=value``, for those that have slipped away to another subreaper.
        groups: The ids of what ``spawn`` started. Where there is no subreaper, their process
            groups lead to those that have lost their parent.
        patience: Seconds after which to give up.

    Returns:
        Those that could not be killed.
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
    """Collect children that end now, and say whether no other is left."""
    for pause in _REAPING:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        time.sleep(pause)
    return False


def reap() -> tuple[int, int] | None:
    """Collect one child that has ended: its id and exit status, negative for a signal."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, os.waitstatus_to_exitcode(status)) if pid else None
