"""The guard: it starts processes, reports their state, and ends all of them."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_ephemeral.errors import EnvironmentGoneError, EphemeralError
from pytest_ephemeral.labels import ENVIRONMENT_VARIABLE
from pytest_ephemeral.providers.local import client, guard, logs
from pytest_ephemeral.providers.local.guard import Guard, Spec
from pytest_ephemeral.providers.local.supervisor import loop
from pytest_ephemeral.providers.local.supervisor.logs import SEGMENT_SIZE, SEGMENTS_KEPT
from pytest_ephemeral.providers.local.supervisor.processes import find_marked
from support.platforms import linux_only
from support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no guard on Windows")


Start = Callable[..., Guard]


def control_of(folder: Path, id: str) -> Path:
    """Create the folder for the socket of a guard."""
    control = folder.with_name(f"{folder.name}-control") / id
    control.mkdir(mode=0o700, parents=True, exist_ok=True)
    return control


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., Spec]:
    """Make specs of shell commands by name, with folders of this test."""

    def make(commands: dict[str, str], **changes: Any) -> Spec:
        (tmp_path / "here").mkdir(exist_ok=True)
        wanted: dict[str, Any] = {
            "id": f"guarded-{(token := secrets.token_hex(4))}",
            "control": control_of(tmp_path, changes.get("id", f"guarded-{token}")),
            "processes": {name: ["/bin/sh", "-c", text] for name, text in commands.items()},
            "directory": tmp_path / "here",
            "variables": {"PATH": os.environ["PATH"]},
            "logs": tmp_path / "logs",
        }
        return Spec(**{**wanted, **changes})

    return make


@pytest.fixture
def start(spec: Callable[..., Spec]) -> Iterator[Start]:
    """Start guards that are stopped after the test."""
    started: list[Guard] = []

    def begin(commands: dict[str, str], **changes: Any) -> Guard:
        started.append(guard.start(spec(commands, **changes)))
        return started[-1]

    yield begin
    for one in started:
        one.stop()


def test_the_supervisor_marker_matches_the_label() -> None:
    """The supervisor can't import the label, so it has a copy."""
    assert loop.MARKER == ENVIRONMENT_VARIABLE


def test_processes_get_only_their_own_variables(start: Start, tmp_path: Path) -> None:
    """Variables of this process are not passed on; only the marker is added."""
    one = start({"a": "env"}, variables={"COLOUR": "blue"})
    until(lambda: client.status(one.address)["processes"][0]["ended_at"])
    lines = set(logs.read(tmp_path / "logs", "a").decode().split())
    assert {"COLOUR=blue", f"{ENVIRONMENT_VARIABLE}={one.id}"} <= lines
    assert {line.split("=")[0] for line in lines} <= {"COLOUR", ENVIRONMENT_VARIABLE, "PWD", "_"}


def test_processes_inherit_no_open_files(start: Start, tmp_path: Path) -> None:
    """They have only standard input, output and error."""
    one = start(
        {"a": f"exec {sys.executable} -I -S -c 'import os; print(os.listdir(\"/dev/fd\"))'"}
    )
    until(lambda: client.status(one.address)["processes"][0]["ended_at"])
    assert logs.read(tmp_path / "logs", "a") == b"['0', '1', '2', '3']\n"  # 3 is from os.listdir


def test_exit_statuses_and_signals_are_reported(start: Start) -> None:
    """``None`` means that the process still ran, also in the report at the end."""
    one = start({"a": "exit 3", "b": "kill -9 $$", "c": "exec sleep 100"})
    until(
        lambda: sum(p["ended_at"] is not None for p in client.status(one.address)["processes"]) == 2
    )
    statuses = {p["name"]: p["status"] for p in client.status(one.address)["processes"]}
    assert statuses == {"a": 3, "b": -9, "c": None}
    one.stop()
    assert one.wait() == {"a": 3, "b": -9, "c": None}


HOOK = "trap 'sleep 0.3; echo saved >> saved; exit 0' USR1; echo up; while :; do sleep 0.02; done"


def test_processes_get_a_grace_period_to_stop(start: Start, tmp_path: Path) -> None:
    """So do children of a shell that ends at once. The stop returns early when all have ended."""
    one = start({"a": f"({HOOK}) & wait", "b": f"exec sh -c {shlex.quote(HOOK)}"})
    until(lambda: all(logs.read(tmp_path / "logs", name) == b"up\n" for name in ("a", "b")))
    began = time.monotonic()
    one.stop(20.0, signal.SIGUSR1)
    assert time.monotonic() - began < 10
    assert (tmp_path / "here/saved").read_text() == "saved\nsaved\n"
    assert one.wait()["b"] == 0


def test_processes_are_killed_after_the_grace_period(start: Start, tmp_path: Path) -> None:
    """Another request during the grace period can kill them at once."""
    deaf = {"a": "trap '' TERM; echo up; while :; do sleep 0.02; done"}
    one = start(deaf)
    until(lambda: logs.read(tmp_path / "logs", "a") == b"up\n")
    one.stop(0.3, signal.SIGTERM)
    assert one.wait() == {"a": None}
    other = start(deaf, logs=tmp_path / "other")
    until(lambda: logs.read(tmp_path / "other", "a") == b"up\n")
    waiting = threading.Thread(target=other.stop, args=(60.0, signal.SIGTERM))
    waiting.start()
    client.status(other.address)  # the guard answers while it waits
    client.stop(other.address)
    waiting.join(20)
    assert not waiting.is_alive()


def test_a_missing_command_is_named_in_the_log(start: Start, tmp_path: Path) -> None:
    """As in a shell, the exit status is 127."""
    one = start({"a": ""}, processes={"a": ["/no/such/program"]})
    until(lambda: client.status(one.address)["processes"][0]["status"] == 127)
    assert b"/no/such/program: No such file" in logs.read(tmp_path / "logs", "a")


def test_a_second_guard_of_the_same_id_is_refused(start: Start, spec: Callable[..., Spec]) -> None:
    """Both guards would have the same control socket."""
    one = start({"a": "exec sleep 100"})
    with pytest.raises(EphemeralError, match="runs already"):
        guard.start(spec({"a": "exec sleep 100"}, id=one.id))


def test_a_path_as_process_name_is_refused(spec: Callable[..., Spec]) -> None:
    """Otherwise, its log would be written outside of the log folder."""
    with pytest.raises(ValueError, match="can't be called"):
        guard.start(spec({"../a": "true"}))


@linux_only
def test_stop_ends_daemonized_processes(start: Start, tmp_path: Path) -> None:
    """The daemon has a session of its own, and its parent has exited."""
    script = "(setsid sh -c 'echo $$ > daemon; exec sleep 1000' &) ; exec sleep 1000"
    one = start({"a": script})
    pid = int(until((tmp_path / "here/daemon").read_text))
    assert Path(f"/proc/{pid}").exists()
    one.stop()
    assert find_marked(f"{ENVIRONMENT_VARIABLE}={one.id}") == []
    assert not Path(f"/proc/{pid}").exists()


@linux_only
def test_stop_ends_a_growing_process_tree(start: Start, tmp_path: Path) -> None:
    """No process is left, even if the processes start others all the time."""
    script = "f() { while :; do (exec sleep 1000) & touch up; sleep 0.02; done; }; f & f & f & wait"
    one = start({"a": script})
    until(lambda: len(find_marked(f"{ENVIRONMENT_VARIABLE}={one.id}")) > 30)
    one.stop()
    assert find_marked(f"{ENVIRONMENT_VARIABLE}={one.id}") == []


def test_large_output_does_not_block(start: Start, tmp_path: Path) -> None:
    """All output is read, and the log keeps the end of it within its size limit."""
    one = start({"a": "head -c 100000000 /dev/zero; echo done"})
    until(lambda: client.status(one.address)["processes"][0]["status"] == 0, within=60)
    assert logs.end(tmp_path / "logs", "a") == 100_000_005
    assert logs.read(tmp_path / "logs", "a", 99_999_990).endswith(b"\0done\n")
    kept = sum(path.stat().st_size for path in (tmp_path / "logs").iterdir())
    assert kept <= SEGMENT_SIZE * SEGMENTS_KEPT


def test_a_secret_in_two_writes_is_masked(start: Start, tmp_path: Path) -> None:
    """Output is held back only if it may be the start of a secret, so a prompt appears at once."""
    script = "printf 'key: hid'; while [ ! -e go ]; do sleep 0.01; done; printf 'den\\nmore? '"
    one = start({"a": f"{script}; exec sleep 100"}, secrets=["hidden"])
    until(lambda: logs.read(tmp_path / "logs", "a") == b"key: ")
    (tmp_path / "here/go").touch()
    until(lambda: logs.read(tmp_path / "logs", "a") == b"key: ***\nmore? ")
    client.status(one.address)


@linux_only
def test_a_tree_is_read_only_even_for_root(start: Start, tmp_path: Path) -> None:
    """Neither its processes nor commands that are run beside them can write; this process can."""
    tree = tmp_path / "tree"
    tree.mkdir()
    one = start({"a": f"echo x > {tree}/file; exec sleep 100"}, readonly=[tree])
    if refused := client.status(one.address)["writable"]:
        pytest.skip(f"the kernel does not let us: {refused}")
    until(lambda: b"Read-only file system" in logs.read(tmp_path / "logs", "a"))
    assert client.run(one.address, ["touch", f"{tree}/file"], 20).returncode == 1
    (tree / "file").touch()


@linux_only
def test_a_failed_read_only_mount_does_not_prevent_the_start(start: Start, tmp_path: Path) -> None:
    """The status has the reason, and the processes run."""
    one = start({"a": "exec sleep 100"}, readonly=[tmp_path / "missing"])
    found = client.status(one.address)
    assert "No such file" in found["writable"]
    assert found["processes"][0]["status"] is None


def test_run_to_end_returns_status_and_output(spec: Callable[..., Spec]) -> None:
    """Bakes use it. Processes that the script left running have ended on return."""
    lines: list[str] = []
    script = "echo one; (setsid sleep 1000 &) ; printf two; exit 7"
    wanted = spec({"install": script})
    assert guard.run_to_end(wanted, on_output=lines.append) == 7
    assert lines == ["one", "two"]
    assert find_marked(f"{ENVIRONMENT_VARIABLE}={wanted.id}") == []
    with pytest.raises(EnvironmentGoneError):
        client.status(wanted.address)


def test_run_to_end_passes_on_early_output(
    spec: Callable[..., Spec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script may have failed before its caller begins to read the output."""
    started, lines = guard.start, list[str]()

    def start(wanted: Spec) -> Guard:
        running = started(wanted)
        until(lambda: logs.end(wanted.logs, "install") > 0)
        return running

    monkeypatch.setattr(guard, "start", start)
    assert guard.run_to_end(spec({"install": "echo no; exit 3"}), on_output=lines.append) == 3
    assert lines == ["no"]


def test_run_to_end_kills_processes_after_a_timeout(spec: Callable[..., Spec]) -> None:
    """These include processes that the script has started in the background."""
    wanted = spec({"install": "sleep 1000 & wait"})
    with pytest.raises(subprocess.TimeoutExpired):
        guard.run_to_end(wanted, timeout=0.3)
    assert find_marked(f"{ENVIRONMENT_VARIABLE}={wanted.id}") == []


def test_stop_removes_unwritable_folders(start: Start, tmp_path: Path) -> None:
    """An application may have removed the write permission of its folders."""
    one = start(
        {"a": "mkdir -p sub/deep && touch sub/deep/file && chmod 500 sub/deep sub; exec sleep 100"},
        remove=[tmp_path / "here", tmp_path / "logs"],
    )
    until(lambda: (tmp_path / "here/sub").stat().st_mode & 0o777 == 0o500)
    one.stop()
    assert list(tmp_path.iterdir()) == []


def test_the_expiry_can_be_cleared_or_brought_forward(start: Start) -> None:
    """Without an expiry, the guard continues; with the current time, it ends at once."""
    one = start({"a": "exec sleep 1000"}, expires_at=time.time() + 1000)
    client.extend(one.address, None)
    assert client.status(one.address)["expires_at"] is None
    client.extend(one.address, time.time())
    assert one.wait(20) == {"a": None}


def test_the_settle_command_runs_only_after_an_expiry(start: Start, tmp_path: Path) -> None:
    """It does not run after a stop. The guard does not end it, as it has no marker."""
    settle = [
        "/bin/sh",
        "-c",
        f"env > {tmp_path}/settling; mv {tmp_path}/settling {tmp_path}/settled",
    ]
    stopped = start({"a": "exec sleep 1000"}, settle=settle)
    stopped.stop()
    assert not (tmp_path / "settled").exists()
    start({"a": "exec sleep 1000"}, settle=settle, expires_at=time.time())
    variables = until((tmp_path / "settled").read_text)
    assert ENVIRONMENT_VARIABLE not in variables


def test_invalid_requests_do_not_break_the_guard(start: Start) -> None:
    """Each is answered with an error or not at all, and the guard continues."""
    from pytest_ephemeral.providers.local import control_socket

    one = start({"a": "exec sleep 1000"})
    for data in (
        b"{]\n",
        b'"x"\n',
        b"\xff\n",
        b'{"do": "run"}\n',
        b'{"do": "run", "argv": ["x"]}\n',
    ):
        with control_socket.connect(one.address) as connection:
            connection.sendall(data)
            connection.shutdown(1)
            answer = connection.recv(1000)
        assert not answer or b"error" in answer
    assert client.status(one.address)["processes"][0]["status"] is None


def test_stop_ends_commands_being_run(start: Start) -> None:
    """The caller that waits for a command gets ``EnvironmentGoneError``."""
    one = start({"a": "exec sleep 1000"})
    caught: list[BaseException] = []

    def run() -> None:
        try:
            client.run(one.address, ["sleep", "1000"], None)
        except EphemeralError as error:
            caught.append(error)

    waiting = threading.Thread(target=run)
    waiting.start()
    until(lambda: len(find_marked(f"{ENVIRONMENT_VARIABLE}={one.id}")) == 3)
    one.stop()
    waiting.join(20)
    assert isinstance(caught[0], EnvironmentGoneError)


def test_a_crashed_guard_reports_the_reason(start: Start, tmp_path: Path) -> None:
    """A log can't be opened, so all processes are ended, and the error has the reason."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/a.00000000000000000000.log").mkdir()
    one = start({"a": "exec sleep 1000"})
    with pytest.raises(EphemeralError, match=r"(?s)crashed.*IsADirectoryError"):
        one.wait(20)
    assert find_marked(f"{ENVIRONMENT_VARIABLE}={one.id}") == []
