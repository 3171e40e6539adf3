"""A provider in one file: an environment is a shell command on an address of its own.

Everything that belongs to an environment is in a folder named after its id: its labels, its log
and its exit status. Its processes have its id in their variables. Linux only.
"""

from __future__ import annotations

import os
import secrets
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from pytest_ephemeral import labels
from pytest_ephemeral.errors import DestroyError, LaunchError
from pytest_ephemeral.masking import mask
from pytest_ephemeral.models import Endpoint, Environment
from pytest_ephemeral.providers.protocol import Check, Order, Owned, Status
from pytest_ephemeral.tables import Template

FOLDER = Path.home() / ".cache" / "pytest-ephemeral-shell"


class ShellTemplate(Template, frozen=True, kw_only=True):
    """``[templates.NAME]`` with ``provider = "shell"``.

    Attributes:
        command: What to run. It listens on ``$HOST`` and on ``$PORT``, or ``$PORT_NAME``.
    """

    command: str


class ShellProvider:
    """Runs environments; see ``Provider`` for what each method promises."""

    name: ClassVar[str] = "shell"
    template_type: ClassVar[type[Template]] = ShellTemplate
    recipe_type: ClassVar[None] = None
    forwards_ports: ClassVar[bool] = False

    def doctor(self) -> Sequence[Check]:
        return [Check("shell", ok=Path("/proc/net/tcp").exists(), detail="it needs Linux")]

    def launch(self, order: Order) -> Environment:
        environment, template = order.environment, order.template
        assert isinstance(template, ShellTemplate)
        host = "127." + ".".join(str(1 + secrets.randbelow(254)) for _ in range(3))
        ports = template.endpoints()
        variables = {"HOST": host, "PORT": str(next(iter(ports.values()))), **order.variables}
        variables |= {f"PORT_{name.upper()}": str(port) for name, port in ports.items()}
        variables[labels.ENVIRONMENT_VARIABLE] = environment.id
        folder = _folder(environment.id)
        folder.mkdir(mode=0o700, parents=True)
        _write(folder / "labels.json", environment.labels)  # first: what has labels can be swept
        _write(folder / "private.json", {"env": variables, "secrets": list(order.secrets)})
        script = f'({template.command})\necho $? > "{folder}/status"'
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                ["sh", "-c", script],
                env=os.environ | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while process.poll() is None and not _processes(folder):
            time.sleep(0.001)  # until it has its variables, nobody could find it
        endpoints = {name: Endpoint(host=host, port=port) for name, port in ports.items()}
        url = next(iter(endpoints.values())).url
        handle = {"folder": str(folder)}
        return msgspec.structs.replace(environment, handle=handle, endpoints=endpoints, url=url)

    def status(self, environment: Environment) -> Status:
        folder = _folder(environment.id)
        if (folder / "status").exists() and (status := (folder / "status").read_text().strip()):
            return Status("exited", f"app exited with status {status}")
        return Status("running" if _processes(folder) else "gone")

    def logs(
        self,
        environment: Environment,
        *,
        since: str | None = None,
        until: str | None = None,
        tail: int | None = None,
    ) -> str:
        folder = _existing(environment)
        content = (folder / "log").read_bytes()
        text = content[int(since or 0) : int(until or len(content))].decode(errors="replace")
        text = mask(text, _read(folder / "private.json")["secrets"])
        return text if tail is None else "".join(text.splitlines(keepends=True)[-tail:])

    def log_mark(self, environment: Environment) -> str:
        return str((_folder(environment.id) / "log").stat().st_size)

    def log_files(self, environment: Environment) -> Mapping[str, str]:
        return {"app": self.logs(environment)}

    def run(
        self, environment: Environment, argv: Sequence[str], *, timeout: float | None
    ) -> subprocess.CompletedProcess[str]:
        variables = _read(_existing(environment) / "private.json")["env"]
        process = subprocess.Popen(
            ["sh", "-c", 'exec "$@"', "sh", *argv],
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        return subprocess.CompletedProcess(argv, process.returncode, output, errors)

    def hint(self, environment: Environment) -> str:
        wanted = {endpoint.port for endpoint in environment.endpoints.values()}
        other = sorted(_listening_ports(_processes(_folder(environment.id))) - wanted)
        return f"it listens on {other}, and not on {sorted(wanted)}" if other else ""

    def extend(self, environment: Environment, expires_at: datetime | None) -> None:
        expires = labels.NEVER if expires_at is None else expires_at.isoformat(timespec="seconds")
        file = _existing(environment) / "labels.json"
        _write(file, _read(file) | {labels.EXPIRES: expires})

    def keep(self, environment: Environment) -> None:
        _existing(environment)  # it does not end with its owner in any case

    def destroy(self, environment: Environment) -> None:
        _remove(_folder(environment.id))

    def list_owned(self) -> Iterator[Owned]:
        for file in FOLDER.glob("*/labels.json"):
            seen = datetime.now(UTC)
            yield Owned(file.parent.name, _read(file), detail=str(file.parent), seen_at=seen)

    def sweep(self, owned: Owned) -> None:
        _remove(_folder(owned.id))


def _folder(id: str) -> Path:
    return FOLDER / id


def _existing(environment: Environment) -> Path:
    if not (folder := _folder(environment.id)).is_dir():
        raise LaunchError(f"{environment.id} is gone")
    return folder


def _read(file: Path) -> Any:
    return msgspec.json.decode(file.read_bytes())


def _write(file: Path, content: object) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(content))
    new.replace(file)


def _processes(folder: Path) -> list[Path]:
    """The processes that have the environment's id in their variables, as all children inherit."""
    marker = f"{labels.ENVIRONMENT_VARIABLE}={folder.name}".encode()
    everything = Path("/proc").glob("[0-9]*")
    return [one for one in everything if marker in _bytes(one / "environ").split(b"\0")]


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""  # it has just ended


def _listening_ports(processes: Sequence[Path]) -> set[int]:
    files = (file for path in processes for file in (path / "fd").glob("*"))
    inodes = {str(file.readlink()) for file in files if file.is_symlink()}
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {
        int(row[1].partition(":")[2], 16)
        for row in rows
        if row[3] == "0A" and f"socket:[{row[9]}]" in inodes
    }


def _kill(pid: int) -> None:
    """Kill a process and wait: it has its sockets for longer than its variables."""
    with suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], 5)  # readable once it has ended
        finally:
            os.close(process)


def _remove(folder: Path) -> None:
    """Kill the processes, then remove the folder: while anything runs, it can be found."""
    if folder.is_dir() and not (folder / "labels.json").exists():
        raise DestroyError(f"{folder} has no labels.json: it is not one of ours")
    deadline = time.monotonic() + 5
    while processes := _processes(folder):
        for process in processes:
            _kill(int(process.name))
        if time.monotonic() > deadline:
            raise DestroyError(f"{folder.name}: still running: {[path.name for path in processes]}")
        time.sleep(0.01)
    shutil.rmtree(folder, ignore_errors=True)
