"""``python -m pytest_ephemeral.broker``: the owner process of one run.

``serve FD PID``: answer the clients that connect to the socket ``FD``, for the process ``PID``.
Standard input is that process's lifeline. The first bytes on it are the key of this run. A byte
after them asks to end all environments at once. When it is closed, that process has ended: in
order, or in whatever way, and then everything it needed is ended here, by the same code.

``finish STORE RUN FOLDER...``: end what an owner process has left; the folders have its modules.
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
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_ephemeral.broker.run import Run
    from pytest_ephemeral.broker.server import Server


def main(arguments: Sequence[str]) -> int:
    """Run the owner process.

    Args:
        arguments: As described above.

    Returns:
        The exit status: 0 when nothing is left.
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
    except Exception:  # noqa: BLE001 - nobody reads its standard error
        log(traceback.format_exc())
        return 1


def serve(descriptor: int, client: int) -> int:
    """Serve clients until the process it works for has ended, and its environments are gone."""
    gc.disable()  # what is loaded stays; ``ClientSession.open`` enables it
    ended = Signals()
    from pytest_ephemeral.broker.connection import KEY_LENGTH
    from pytest_ephemeral.broker.server import Server

    key = _read(KEY_LENGTH)
    listening = socket.socket(fileno=descriptor)
    server = Server(listening, key)
    server.start()
    _watch(server, client, ended)
    run = server.close()
    if run is not None:
        finish(run)
    return 0


def finish(run: Run) -> None:
    """End all that a run has brought up.

    What could not be removed, or does not stop when it is told to (a bake, say), is left to another
    program in the place of this one: what this one is in the middle of ends with it.
    """
    run.interrupted.set()
    run.finish()
    run.broker.settle()
    if run.project is not None and not run.is_done():
        from pytest_ephemeral.broker.process import finish_command

        command = finish_command(run.project.store.url, run.id)
        os.execv(command[0], command)  # noqa: S606 - no shell is wanted


class Signals:
    """SIGTERM and SIGHUP are taken as the end of the client. SIGINT is for others.

    Handlers, and not SIG_IGN: what is ignored would be ignored by every child too.

    Attributes:
        descriptor: Readable once such a signal has come.
    """

    def __init__(self) -> None:
        self.descriptor, writing = os.pipe()
        os.set_blocking(writing, False)
        for name in ("SIGTERM", "SIGHUP"):
            if number := getattr(signal, name, None):
                signal.signal(number, lambda *_: os.write(writing, b"!"))
        signal.signal(signal.SIGINT, lambda *_: None)


def _watch(server: Server, client: int, ended: Signals) -> None:
    """Return when the client has ended, or this process is told to.

    Its end of the pipe says so; and its process, where that can be watched: something that it
    has forked without Python's knowledge may hold the pipe open.
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
        said = os.read(0, 4096) if 0 in ready else b""
        if not said:
            server.relay.lose()
            return
        if INTERRUPT in said and server.run is not None:
            server.run.interrupt()


def _open_process(pid: int) -> int | None:
    """A descriptor that is readable once a process has ended; see pidfd_open(2)."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _read(length: int) -> bytes:
    data = b""
    while len(data) < length and (more := os.read(0, length - len(data))):
        data += more
    return data


def log(text: str) -> None:
    """Write to the log."""
    from pytest_ephemeral import machine

    folder = machine.state_directory() / "owners"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with Path(folder, f"{os.getpid()}.log").open("a") as file:
        file.write(text)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    os._exit(status)  # threads of clients that are gone need not be waited for
