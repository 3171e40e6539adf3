"""``python -m pytest_ephemeral.broker``: the owner process of one run.

``serve FD PID``: answer the clients that connect to the socket ``FD``, for the process ``PID``.
Standard input is a pipe from that process. The first bytes on it are the key of this run. An
``INTERRUPT`` byte after them requests the end of all environments at once. The pipe is closed when
that process ends, normally or not. The same code destroys its environments in both cases.

``finish STORE RUN FOLDER...``: destroy what a former owner process of the run has left. The folders
are added to ``sys.path``.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_ephemeral.broker.run import Run
    from pytest_ephemeral.broker.server import Server


def main(arguments: Sequence[str]) -> int:
    """Run the owner process.

    Args:
        arguments: The command and its arguments, as described above.

    Returns:
        The exit status: 0 if nothing is left.
    """
    command, *rest = arguments
    try:
        if command == "finish":
            from pytest_ephemeral.broker.opening import extend_path
            from pytest_ephemeral.environments import cleanup

            store, run, *path = rest
            extend_path(path)
            return cleanup.finish(store, run)
        return serve(int(rest[0]), int(rest[1]))
    except Exception:  # noqa: BLE001 - goes to the log: standard error is not read
        log(traceback.format_exc())
        return 1


def serve(descriptor: int, client: int) -> int:
    """Serve clients until process ``client`` has ended and its environments are gone.

    Args:
        descriptor: The listening socket's file descriptor.
        client: The process id of the client that started this process.

    Returns:
        The exit status.
    """
    gc.disable()  # a faster start: imported modules stay; ``ClientSession.open`` enables it
    ended = Signals()
    from pytest_ephemeral.broker.connection import KEY_LENGTH, read_exactly
    from pytest_ephemeral.broker.server import Server

    key = read_exactly(partial(os.read, 0), KEY_LENGTH)
    listening = socket.socket(fileno=descriptor)
    server = Server(listening, key)
    server.start()
    _watch(server, client, ended)
    run = server.close()
    if run is not None:
        finish(run)
    return 0


def finish(run: Run) -> None:
    """End all environments of a run.

    If an environment could not be destroyed, or a thread (of a bake, for example) does not stop,
    this process replaces itself by the ``finish`` command, which tries again. The replacement also
    ends all threads of this process.
    """
    run.interrupted.set()
    run.finish()
    run.broker.settle()
    if run.project is not None and not run.is_done():
        from pytest_ephemeral.broker.process import finish_command

        command = finish_command(run.project.store.url, run.id)
        os.execv(command[0], command)  # noqa: S606 - no shell is wanted


class Signals:
    """Handles SIGTERM and SIGHUP as the end of the client, and ignores SIGINT.

    SIGINT has an empty handler, because child processes would inherit SIG_IGN.

    Attributes:
        descriptor: Readable after SIGTERM or SIGHUP.
    """

    def __init__(self) -> None:
        self.descriptor, writing = os.pipe()
        os.set_blocking(writing, False)
        for name in ("SIGTERM", "SIGHUP"):
            if number := getattr(signal, name, None):
                signal.signal(number, lambda *_: os.write(writing, b"!"))
        signal.signal(signal.SIGINT, lambda *_: None)


def _watch(server: Server, client: int, ended: Signals) -> None:
    """Return when the client has ended, or this process has received a signal to end.

    The client has ended when its end of the pipe is closed. Its process is watched as well, where
    the system can do that: a child that it forked outside of Python may hold the pipe open.
    """
    from pytest_ephemeral.broker.protocol import INTERRUPT

    poll = select.poll()
    process = _open_process(client)
    for descriptor in (0, ended.descriptor, process):
        if descriptor is not None:
            poll.register(descriptor, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if ended.descriptor in ready:
            return
        received = os.read(0, 4096) if 0 in ready else b""
        if not received:
            server.relay.disconnect_first()
            return
        if INTERRUPT in received and server.run is not None:
            server.run.interrupt()


def _open_process(pid: int) -> int | None:
    """A descriptor that is readable once a process has ended, or None; see pidfd_open(2)."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def log(text: str) -> None:
    """Append to this process's log file, in ``owners`` in the state directory."""
    from pytest_ephemeral import machine

    folder = machine.state_directory() / "owners"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with Path(folder, f"{os.getpid()}.log").open("a") as file:
        file.write(text)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    os._exit(status)  # don't wait for the threads of former clients
