"""The qemu provider on the bench: machines are resumed from memory, as a boot takes long."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench_local import keys_for, marked_processes

from pytest_ephemeral import machine
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.qemu.tables import QemuRecipe, QemuTemplate
from pytest_ephemeral.tables import Recipe, Template
from pytest_ephemeral.testing import Kind
from support import vm

SERVE = 'exec python3 "$PREFIX/application.py" "$HOST"'


class Bench:
    """See ``bench.Bench``.

    Attributes:
        cold: Whether machines boot, for tests that need nothing inside them.
    """

    parts = ("web", "worker")
    cold = False

    def unavailable(self) -> str:
        return vm.unavailable()

    @contextmanager
    def platform(self) -> Iterator[None]:
        """Use a Debian with the application, which is baked once for all tests."""
        self.baked = vm.bake_application()
        yield

    def recipe(self, root: Path) -> Recipe:
        vm.share_memory(machine.state_directory())
        return QemuRecipe(name=vm.NAME, **vm.reference_keys(self.baked))

    def template(self, kind: Kind) -> Template:
        keys: dict[str, Any] = {"image": vm.NAME, "warm": False if self.cold else "booted"}
        keys["memory"] = vm.MEMORY
        return QemuTemplate(name=kind, **keys, **keys_for(kind, SERVE))

    def traces(self, environment: Environment) -> Sequence[str]:
        folder = machine.state_directory() / "machines" / environment.id
        found = [str(path) for path in (folder, *folder.rglob("*")) if path.exists()]
        for endpoint in environment.endpoints.values():
            with socket.socket() as probe:
                probe.settimeout(5)
                if probe.connect_ex((endpoint.host, endpoint.port)) == 0:
                    found.append(f"port {endpoint.host}:{endpoint.port} answers")
        return [*found, *marked_processes(environment.id)]
