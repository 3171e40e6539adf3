"""Docker's plugins, which use an engine themselves; each is started by itself.

Killed with us, ``docker compose`` or ``docker buildx`` would leave the plugin at work.
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

#: Variables of whoever runs the tests that would have a plugin use another engine.
_NOT_PASSED: Final = frozenset(
    {"DOCKER_CONTEXT", "DOCKER_HOST", "DOCKER_CERT_PATH", "DOCKER_TLS", "DOCKER_TLS_VERIFY"}
)


def find(program: str) -> str | None:
    """A plugin's own program, where the docker command would find it; None where it is not."""
    for folder in endpoint.plugin_folders(os.environ):
        if found := shutil.which(program, path=str(folder)):
            return found
    return None


def environ_for(address: Address, *without: str) -> dict[str, str]:
    """This process's variables, for a plugin that is to use an engine.

    Args:
        address: The engine's.
        without: Variables that it must not see.
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
    """Start a plugin that ends when this process is killed, before it can make anything more.

    Args:
        argv: The command.
        environ: Its variables.
        options: For ``subprocess.Popen``, besides.
    """
    dying = sys.platform == "linux" and shutil.which("setpriv")
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [*(["setpriv", "--pdeathsig", "KILL"] if dying else []), *argv],
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environ,
        start_new_session=True,  # a Ctrl-C is for us, and would leave half of it
        **options,
    )


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a plugin with what it has started."""
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
