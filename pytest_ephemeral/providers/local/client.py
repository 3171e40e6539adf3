"""Send requests to a guard, from any process of this user.

All functions raise ``EnvironmentGoneError`` if there is no such guard, or if it ends meanwhile.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_ephemeral.errors import DestroyError, EnvironmentGoneError, EphemeralError
from pytest_ephemeral.providers.local import control_socket
from pytest_ephemeral.providers.local.control_socket import GuardAddress
from pytest_ephemeral.providers.local.supervisor.control import exchange

#: Seconds that a guard may take to answer, and to end all processes (it gives up after 5).
ANSWER_TIME, END_TIME = 5.0, 8.0


def status(guard: GuardAddress) -> dict[str, Any]:
    """The state of a guard and its processes.

    All output up to this request is in the logs afterwards.

    Returns:
        ``pid``; ``processes``, each with ``name``, ``pid``, ``started_at``, ``ended_at``
        (seconds since the epoch, or None) and ``status`` (the exit status, negative for a signal,
        or None); ``expires_at``; ``kept``; ``writable`` (why trees are not read-only, or empty).
    """
    return _ask(guard, {"do": "status"}, timeout=ANSWER_TIME)


def extend(guard: GuardAddress, expires_at: float | None) -> None:
    """Change a guard's expiry, in seconds since the epoch; None removes it permanently."""
    _ask(guard, {"do": "extend", "expires_at": expires_at}, timeout=ANSWER_TIME)


def keep(guard: GuardAddress) -> None:
    """Make a guard outlive its owner; its expiry stays."""
    _ask(guard, {"do": "keep"}, timeout=ANSWER_TIME)


def stop(
    guard: GuardAddress, grace: float = 0.0, signal: int = 0, *, keep_guard: bool = False
) -> None:
    """End all processes of a guard, and the guard, and wait until they have ended.

    Args:
        guard: The guard.
        grace: Seconds that its processes get to stop; 0 to kill them at once.
        signal: The number of the signal that tells them to stop.
        keep_guard: Whether the guard stays, to start the processes again.

    Raises:
        DestroyError: A process can't be killed.
    """
    what = "halt" if keep_guard else "stop"
    request = {"do": what, "grace": grace, "signal": signal}
    left = _ask(guard, request, timeout=END_TIME + grace)["remaining"]
    if left:
        pids = ", ".join(map(str, left))
        raise DestroyError(f"these processes of {guard.id} can't be killed: {pids}")


def layer(guard: GuardAddress, folders: Sequence[str], number: int) -> str:
    """Make processes write into a new layer; see ``supervisor.layers``.

    Args:
        guard: The guard.
        folders: The folders that processes write to.
        number: The layer's number, a new one each time.

    Returns:
        Why there can't be a layer, or empty.
    """
    request = {"do": "layer", "folders": list(folders), "number": number}
    return str(_ask(guard, request, timeout=ANSWER_TIME)["refused"])


def start(guard: GuardAddress) -> None:
    """Start a guard's processes again, after ``stop`` with ``keep_guard``."""
    _ask(guard, {"do": "start"}, timeout=ANSWER_TIME)


def run(
    guard: GuardAddress, argv: Sequence[str], timeout: float | None, *, own: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a command with the variables, working folder and mounts of the guard's processes.

    Args:
        guard: The guard.
        argv: The command; its standard input is empty.
        timeout: Seconds after which it and its processes are killed; None for no limit.
        own: Whether it is run as the guard's own user, with the guard's variables, instead.

    Returns:
        Its exit status and output.

    Raises:
        subprocess.TimeoutExpired: It took longer, and was killed.
    """
    # Files instead of pipes: a daemon that the command starts may hold a pipe open.
    with (
        Path(os.devnull).open("rb") as nothing,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
    ):
        files = [file.fileno() for file in (nothing, output, errors)]
        try:
            answer = _ask(
                guard, {"do": "run", "argv": list(argv), "own": own}, files, timeout=timeout
            )
        except TimeoutError:
            raise subprocess.TimeoutExpired(
                list(argv), timeout or 0, _text(output), _text(errors)
            ) from None
        return subprocess.CompletedProcess(
            list(argv), answer["status"], _text(output), _text(errors)
        )


def _ask(
    guard: GuardAddress,
    request: Mapping[str, Any],
    descriptors: Sequence[int] = (),
    *,
    timeout: float | None,
) -> dict[str, Any]:
    try:
        with control_socket.connect(guard) as connection:
            connection.settimeout(timeout)
            answer = exchange(connection, request, descriptors)
    except (ConnectionError, EOFError) as error:
        raise EnvironmentGoneError(
            f"no process of {guard.id} runs any more: it was destroyed, has expired, or its "
            "guard was "
            f"killed. List what is up: pytest-ephemeral list"
        ) from error
    except (TimeoutError, BlockingIOError) as error:
        if request["do"] == "run":
            raise
        raise EphemeralError(
            f"the guard of {guard.id} does not answer: it may be stopped, or this machine "
            f"overloaded. Destroy it with: pytest-ephemeral down {guard.id}"
        ) from error
    except OSError as error:
        raise EphemeralError(f"the guard of {guard.id} can't be reached: {error}") from error
    if "error" in answer:
        raise EphemeralError(f"{guard.id}: {answer['error']}")
    return answer


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode(errors="replace"))
