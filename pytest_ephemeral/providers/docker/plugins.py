"""Run Docker's plugins, such as compose and buildx, directly.

The docker command starts a plugin as another process, which would survive if both this process
and the docker command were killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from pytest_ephemeral.providers.docker import endpoint
from pytest_ephemeral.providers.docker.engine import Address

#: Variables by which a plugin would use another engine.
_NOT_PASSED: Final = frozenset(
    {"DOCKER_CONTEXT", "DOCKER_HOST", "DOCKER_CERT_PATH", "DOCKER_TLS", "DOCKER_TLS_VERIFY"}
)


def find(program: str) -> str | None:
    """The path of a plugin's program, in the docker command's folders; None if there is none."""
    for folder in endpoint.plugin_folders(os.environ):
        if found := shutil.which(program, path=str(folder)):
            return found
    return None


def environ_for(address: Address, *without: str) -> dict[str, str]:
    """The environment variables of a plugin: this process's, and those for its engine.

    Args:
        address: The engine's address.
        without: Variables to leave out.
    """
    dropped = _NOT_PASSED | set(without)
    environ = {name: value for name, value in os.environ.items() if name not in dropped}
    environ["DOCKER_HOST"] = address.url
    if address.certificates:
        environ["DOCKER_CERT_PATH"] = address.certificates
        environ["DOCKER_TLS_VERIFY" if address.verify else "DOCKER_TLS"] = "1"
    return environ


def start(
    argv: Sequence[str], *, environ: Mapping[str, str], **options: object
) -> subprocess.Popen[str]:
    """Start a plugin; on Linux, it is killed at once if this process dies.

    Args:
        argv: The command.
        environ: The command's variables.
        options: Further arguments of ``subprocess.Popen``.
    """
    dying = sys.platform == "linux" and shutil.which("setpriv")
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [*(["setpriv", "--pdeathsig", "KILL"] if dying else []), *argv],
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environ,
        start_new_session=True,  # Ctrl-C must not reach it: this process ends it
        **options,
    )


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a plugin and the processes that it has started."""
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
