"""An ssh server on loopback that accepts one key, and an ssh command that uses the key.

The ssh command shares a connection (``ControlMaster``), as the documentation advises.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.waiting import until

_SERVER = """\
HostKey {folder}/host
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
SetEnv PATH={path}
"""

_CLIENT = """\
#!/bin/sh
exec {ssh} -F none -i {folder}/key -o UserKnownHostsFile={folder}/known \
    -o StrictHostKeyChecking=accept-new \
    -o ControlMaster=auto -o ControlPersist=60 -o ControlPath={folder}/open "$@"
"""


def require() -> None:
    """Skip the test without an ssh server, or without root."""
    if os.geteuid() != 0 or _sshd() is None or shutil.which("ssh") is None:
        pytest.skip("without root and sshd: .ci/engine installs it")


@contextmanager
def running(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[int]:
    """Start a server, and put an ssh command that can log in on the ``PATH``.

    Args:
        folder: The folder for keys and for the ssh command.
        patch: Changes the ``PATH``.

    Returns:
        The server's port.
    """
    for name in ("host", "key"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(keygen, check=True)
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd requires it
    (folder / "server").write_text(_SERVER.format(folder=folder, path=os.environ["PATH"]))
    client = folder / "bin" / "ssh"
    client.parent.mkdir()
    client.write_text(_CLIENT.format(folder=folder, ssh=shutil.which("ssh")))
    client.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    argv = [_sshd() or "sshd", "-D", "-e", "-f", str(folder / "server")]
    listen = ["-o", f"ListenAddress=127.0.0.1:{port}"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([*argv, *listen], stderr=log)
    try:
        until(lambda: "listening" in (folder / "log").read_text())
        patch.setenv("PATH", f"{client.parent}:{os.environ['PATH']}")
        yield port
    finally:
        subprocess.run([client, "-O", "exit", "any"], capture_output=True, check=False)
        server.terminate()
        server.wait(20)


def _sshd() -> str | None:
    """The path of the server's program, which must be started by its full path."""
    return shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
