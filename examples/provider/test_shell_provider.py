"""The provider passes the conformance suite."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from shell_provider import FOLDER, ShellTemplate

from pytest_ephemeral.models import Environment
from pytest_ephemeral.testing import APPLICATION, Kind, ProviderConformance

SERVE = f'exec "{sys.executable}" "{APPLICATION}" "$HOST"'
COMMANDS = {
    "web": f"{SERVE} $PORT",
    "pair": f"({SERVE} $PORT_ADMIN) & {SERVE} $PORT",
    "crash": "echo no database >&2; exit 3",
    "elsewhere": f"{SERVE} 18478",
}
PORTS = {"http": 28477, "admin": 28479}


class Bench:
    """What the suite needs of the provider."""

    parts = ("app",)

    def unavailable(self) -> str:
        return ""

    def recipe(self, root: Path) -> None:  # noqa: ARG002 - it bakes no images
        return None

    def template(self, kind: Kind) -> ShellTemplate:
        ports = PORTS if kind == "pair" else {"http": 18477 if kind == "elsewhere" else 28477}
        return ShellTemplate(name=kind, provider="shell", command=COMMANDS[kind], ports=ports)

    def traces(self, environment: Environment) -> Sequence[str]:
        """By other means than the provider's own: who listens at its address, and files."""
        found = [str(path) for path in FOLDER.glob(f"{environment.id}*")]
        for endpoint in environment.endpoints.values():
            with socket.socket() as client:
                if client.connect_ex((endpoint.host, endpoint.port)) == 0:
                    found.append(endpoint.url)
        return found


class TestShellProvider(ProviderConformance):
    """All that every provider promises."""

    @pytest.fixture(scope="class")
    @classmethod
    def bench(cls) -> Bench:
        return Bench()
