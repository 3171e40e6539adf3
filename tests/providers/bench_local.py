"""The local provider on the bench."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_ephemeral import machine
from pytest_ephemeral.labels import ENVIRONMENT_VARIABLE
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.local.tables import LocalRecipe, LocalTemplate
from pytest_ephemeral.tables import Recipe, Template
from pytest_ephemeral.testing import APPLICATION, Kind
from support import processes

SERVE = f'exec "{sys.executable}" "$PREFIX/application.py" "$HOST"'


class Bench:
    """See ``bench.Bench``."""

    parts = ("web", "worker")

    def unavailable(self) -> str:
        return "the local provider does not run on Windows" if sys.platform == "win32" else ""

    def recipe(self, root: Path) -> Recipe:
        shutil.copy(APPLICATION, root)
        return LocalRecipe(
            name="app",
            install=[f'cp "{root}/application.py" "$PREFIX"'],
            verify=['test -f "$PREFIX/application.py"'],
        )

    def template(self, kind: Kind) -> Template:
        return LocalTemplate(name=kind, image="app", **keys_for(kind, SERVE))

    def traces(self, environment: Environment) -> Sequence[str]:
        return [
            *marked_processes(environment.id),
            *_folder(environment.id),
            *_sockets(environment),
        ]


def keys_for(kind: Kind, serve: str) -> dict[str, Any]:
    """Return a template's command and ports; ports below 10000 may be in use by other programs.

    Args:
        kind: The template's kind.
        serve: The command that serves, without its port.
    """
    match kind:
        case "web":
            return {"command": f'{serve} "$PORT"', "port": 18473}
        case "pair":
            worker = f"echo working; {serve} $PORT_ADMIN"
            return {
                "command": {"web": f"{serve} $PORT", "worker": worker},
                "ports": {"http": 18474, "admin": 18475},
            }
        case "crash":
            return {"command": "echo no database >&2; exit 3", "port": 18476}
        case "elsewhere":
            return {"command": f"{serve} 18478", "port": 18477}


def marked_processes(id: str) -> list[str]:
    """List the processes whose variables contain the id, without the provider's own code."""
    found = processes.with_variable(f"{ENVIRONMENT_VARIABLE}={id}")
    return [f"process {pid}: {processes.command_of(pid)!r}" for pid in found]


def _folder(id: str) -> list[str]:
    folder = machine.state_directory() / "environments" / id
    return [str(path) for path in (folder, *folder.rglob("*")) if path.exists()]


def _sockets(environment: Environment) -> list[str]:
    """List ports that still answer, and abstract socket names that are still in use."""
    found = []
    for endpoint in environment.endpoints.values():
        with socket.socket() as probe:
            probe.settimeout(5)
            if probe.connect_ex((endpoint.host, endpoint.port)) == 0:
                found.append(f"port {endpoint.host}:{endpoint.port} answers")
    names = Path("/proc/net/unix").read_text().split() if sys.platform == "linux" else []
    hosts = {endpoint.host for endpoint in environment.endpoints.values()}
    claims = {f"@pytest-ephemeral/address/{host}" for host in hosts}
    claims.add(f"@pytest-ephemeral/{os.getuid()}/{environment.id}")
    return found + [f"socket {name}" for name in claims.intersection(names)]
