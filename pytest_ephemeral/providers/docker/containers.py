"""One container: its state, where it listens, and commands inside it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.providers.docker.engine import JSON_TYPE, Engine, frames

#: Limits the logs, so that an application can't fill the engine's disk.
LOG_LIMITS: Final = {"Type": "json-file", "Config": {"max-size": "64m", "max-file": "2"}}

#: The exit statuses of a command that could not be started.
_NOT_STARTED: Final = frozenset({126, 127, 255})

#: Seconds for killing a command after its time-out.
_KILL_PATIENCE: Final = 10.0

_EXEC_VARIABLE: Final = "PYTEST_EPHEMERAL_EXEC"


def inspect(engine: Engine, container: str) -> dict[str, Any]:
    """The engine's description of a container, by name or id.

    Raises:
        EngineError: There is no such container (status 404).
    """
    found: dict[str, Any] = engine.call("GET", f"/containers/{container}/json", timeout=10)
    return found


def exit_reason(state: Mapping[str, Any]) -> str:
    """Why a container has ended, by its ``State``, for people."""
    code = state.get("ExitCode", 0)
    how = f"exited with status {code}"
    if state.get("OOMKilled"):
        how = "was killed: it used more memory than its limit"
    elif code > 128 and code - 128 in set(signal.Signals):
        how = f"was ended by {signal.Signals(code - 128).name}"
    finished = str(state.get("FinishedAt", ""))
    when = f" at {finished[11:19]} UTC" if finished > "0001-01-02" else ""
    error = f": {state['Error']}" if state.get("Error") else ""
    return how + when + error


def health_output(found: Mapping[str, Any]) -> str:
    """The last output of a container's health check, in one line."""
    log = (found["State"].get("Health") or {}).get("Log") or [{}]
    output = str(log[-1].get("Output", "")).split()
    return " ".join(output) or f"nothing, but status {log[-1].get('ExitCode', '?')}"


def describe_architecture(engine: Engine, found: Mapping[str, Any]) -> str:
    """A note if the image is for another architecture than the engine's machine, or empty."""
    try:
        image = engine.call("GET", f"/images/{found['Image']}/json", timeout=10)
        version = engine.call("GET", "/version", timeout=10)
    except (EphemeralError, TimeoutError):
        return ""
    made, here = image.get("Architecture"), version.get("Arch")
    if not made or made == here:
        return ""
    return f" (its image is made for {made}, and this engine runs {here}: bake it for {here})"


def handles_stop_signal(engine: Engine, container: str) -> bool:
    """Whether a running container's first process handles or blocks its stop signal.

    If not, the kernel does not deliver the signal to process 1 of a namespace
    (pid_namespaces(7)), and waiting would be useless. If the engine's machine has no `ps` that
    shows it, as with Podman, the answer is True.
    """
    found = inspect(engine, container)
    wanted = str(found["Config"].get("StopSignal") or "SIGTERM")
    name = wanted if wanted.startswith("SIG") else f"SIG{wanted}"
    try:
        number = int(wanted) if wanted.isdigit() else signal.Signals[name]
        query = {"ps_args": "-o pid,blocked,caught"}
        listed = engine.call("GET", f"/containers/{container}/top", query=query, timeout=10)
        (masks,) = [row[1:] for row in listed["Processes"] if row[0] == str(found["State"]["Pid"])]
        bits = [int(mask, 16) >> (number - 1) & 1 for mask in masks]
    except (EphemeralError, KeyError, TypeError, ValueError):
        return True
    return any(bits)


# -- commands inside it ----------------------------------------------------------------------------


def run(
    engine: Engine, container: str, argv: Sequence[str], *, timeout: float | None
) -> subprocess.CompletedProcess[str]:
    """Run a command inside a container, and wait until it ends.

    Raises:
        subprocess.TimeoutExpired: It took longer, and was killed.
        EngineError: The container is gone, or does not run.
    """
    token = f"{time.monotonic_ns():x}"
    made = engine.call(
        "POST",
        f"/containers/{container}/exec",
        body={
            "AttachStdout": True,
            "AttachStderr": True,
            "Cmd": list(argv),
            "Env": [f"{_EXEC_VARIABLE}={token}"],
        },
    )
    deadline = None if timeout is None else time.monotonic() + timeout
    output: dict[int, list[bytes]] = {1: [], 2: []}
    try:
        for channel, data in _output(engine, made["Id"], deadline):
            output[channel].append(data)
    except TimeoutError:
        _kill(engine, container, token, made["Id"])
        raise subprocess.TimeoutExpired(
            list(argv), timeout or 0.0, b"".join(output[1]), b"".join(output[2])
        ) from None
    stdout, stderr = (b"".join(output[channel]).decode(errors="replace") for channel in (1, 2))
    status = _status(engine, made["Id"])
    if status in _NOT_STARTED and stdout.startswith("OCI runtime exec failed"):
        # The engine's own message; a shell would print its message to stderr.
        return subprocess.CompletedProcess(list(argv), 127, "", stdout.strip() + "\n")
    return subprocess.CompletedProcess(list(argv), status, stdout, stderr)


def _output(engine: Engine, exec_id: str, deadline: float | None) -> Iterator[tuple[int, bytes]]:
    """The output of a command, as it comes; raises TimeoutError after the deadline."""
    patience = None if deadline is None else max(0.001, deadline - time.monotonic())
    with engine.stream(
        "POST",
        f"/exec/{exec_id}/start",
        body=b'{"Detach": false, "Tty": false}',
        headers=JSON_TYPE,
        timeout=patience,
    ) as answer:
        for frame in frames(answer):
            yield frame
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError


def _status(engine: Engine, exec_id: str) -> int:
    """A command's exit status; the engine has it a moment after the output has ended."""
    for _ in range(200):
        found = engine.call("GET", f"/exec/{exec_id}/json", timeout=10)
        if not found["Running"]:
            return int(found["ExitCode"])
        time.sleep(0.005)
    raise EphemeralError("the command's output has ended, but the command has not")


#: Kills all processes with a variable, until it has found none three times: a process in the
#: middle of fork or execve may not be visible.
_KILL: Final = """\
quiet=0
while [ $quiet -lt 3 ]; do
  quiet=$((quiet + 1))
  for one in /proc/[0-9]*; do
    grep -q {marker} $one/environ 2>/dev/null && kill -9 ${{one#/proc/}} && quiet=0
  done
  sleep 0.02
done
"""


def _kill(engine: Engine, container: str, token: str, exec_id: str) -> None:
    """Kill a command and its processes, found by a variable: the engine has no call for that."""
    script = _KILL.format(marker=f"{_EXEC_VARIABLE}={token}")
    deadline = time.monotonic() + _KILL_PATIENCE
    begun = False
    while not begun and time.monotonic() < deadline:
        begun = _has_begun(engine, exec_id)  # a busy engine may start it later
        made = engine.call(
            "POST",
            f"/containers/{container}/exec",
            # With the output attached, the call returns when the script has ended.
            body={"AttachStdout": True, "Cmd": ["/bin/sh", "-c", script], "User": "0"},
        )
        for _ in _output(engine, made["Id"], deadline):
            pass


def _has_begun(engine: Engine, exec_id: str) -> bool:
    """Whether a command has been started; before that, it has neither pid nor exit status."""
    found = engine.call("GET", f"/exec/{exec_id}/json", timeout=10)
    return bool(found["Running"] or found["Pid"] or found["ExitCode"])
