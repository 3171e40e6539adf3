"""Processes of an environment are found by their variables."""

from __future__ import annotations

import secrets
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_ephemeral.labels import ENVIRONMENT_VARIABLE
from pytest_ephemeral.providers.local.supervisor import procfs
from pytest_ephemeral.providers.local.supervisor.processes import end_marked, find_marked
from support.platforms import linux_only
from support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no guard on Windows")


@pytest.fixture
def mark() -> str:
    """A value that only this test's processes have, as the same tests may run in parallel in CI."""
    return secrets.token_hex(4)


@linux_only
def test_processes_are_found_during_exec(mark: str) -> None:
    """For a moment during ``execve``, a process has no variables to identify it by."""
    again = 'exec /bin/sh -c "$AGAIN"'
    variables = {"AGAIN": again, "MARKED": mark}
    with subprocess.Popen(["/bin/sh", "-c", again], env=variables) as process:
        try:
            until(lambda: find_marked(f"MARKED={mark}"))
            assert all(find_marked(f"MARKED={mark}") for _ in range(500))
            assert end_marked(f"MARKED={mark}") == []
            assert process.wait(5) == -signal.SIGKILL
        finally:
            process.kill()


@linux_only
def test_constantly_forking_processes_are_ended(tmp_path: Path) -> None:
    """Each process in a list of processes has already exited when it is checked."""
    script = tmp_path / "chain.sh"
    script.write_text('/bin/sh "$0" &\n')
    for _ in range(5):
        marker = f"{ENVIRONMENT_VARIABLE}=chain-{secrets.token_hex(4)}"
        name, _, value = marker.partition("=")
        subprocess.run(["/bin/sh", str(script)], env={name: value}, check=True)
        assert end_marked(marker) == []
        assert [find_marked(marker) for _ in range(20)] == [[]] * 20


@linux_only
def test_a_child_of_an_exited_process_is_found(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent forked after the processes were listed, and has exited since."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    with subprocess.Popen(["sleep", "1000"], env={"MARKED": mark}) as child:
        try:
            until(lambda: find_marked(f"MARKED={mark}") == [child.pid])
            lists = iter([[gone.pid], [gone.pid, child.pid], [child.pid]])
            monkeypatch.setattr(procfs, "list_pids", lambda: next(lists))
            assert find_marked(f"MARKED={mark}") == [child.pid]
        finally:
            child.kill()


@linux_only
def test_ended_processes_no_longer_listen(mark: str) -> None:
    """A killed process keeps its sockets until its memory is freed, but has no variables then."""
    code = (
        "import os, socket, time; server = socket.create_server(('127.0.0.1', 0));"
        "pages = b'x' * 300_000_000; print(server.getsockname()[1], flush=True); time.sleep(60)"
    )
    variables = {"MARKED": mark}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        assert end_marked(f"MARKED={mark}") == []
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
