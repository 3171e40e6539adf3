"""The data plane: runs each instance's user data for real, on a loopback address of its own.

The instance's disk is a folder. An AMI's instances share the folder that it was made from, so that
what was installed is at the same path everywhere, as it is on real machines.
"""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_ephemeral.providers.local.supervisor.processes import end_marked

SHUTDOWN = """#!/bin/sh
case "$2" in +*) exit 0;; esac
exec curl -s -X POST "$PYTEST_EPHEMERAL_IMDS/shutdown"
"""


@dataclass
class Guest:
    """The inside of one instance: its disk, console and commands."""

    id: str
    folder: Path
    disk: Path
    address: str
    variables: dict[str, str] = field(default_factory=dict)
    commands: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    @property
    def console(self) -> Path:
        return self.folder / "console"

    def end(self) -> None:
        """Kill all processes of the instance."""
        end_marked(f"EPHEMERAL_GUEST={self.id}")


def keep_as_cloud_init_does(folder: Path, data: bytes) -> bool:
    """Write user data where cloud-init leaves it on an instance's disk.

    Returns:
        Whether the script must still run: it runs once on each instance.
    """
    for name in ("scripts", "sem"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("user-data.txt", "user-data.txt.i", "obj.pkl", "scripts/part-001"):
        (folder / name).write_bytes(data)
    done = folder / "sem/config_scripts_user"
    is_new = not done.exists()
    done.touch()
    return is_new


class Guests:
    """The insides of all instances.

    Args:
        folder: Where disks and consoles are.
        url: The metadata service's URL.
        real: Whether user data runs; if not, each bake reports success at once.
    """

    def __init__(self, folder: Path, url: str, *, real: bool) -> None:
        self.folder = folder
        self.url = url
        self.real = real
        self._guests: dict[str, Guest] = {}
        self._disks: dict[str, Path] = {}
        self._lock = threading.Lock()
        self._bin = folder / "bin"
        self._bin.mkdir(parents=True)
        shutdown = self._bin / "shutdown"
        shutdown.write_text(SHUTDOWN)
        shutdown.chmod(0o755)

    def get(self, id: str) -> Guest | None:
        return self._guests.get(id)

    def boot(self, instance: Any) -> None:
        """Start an instance: run its user data, as cloud-init does."""
        folder = self.folder / instance.id
        folder.mkdir(exist_ok=True)
        disk = self._disks.get(instance.image_id) or folder / "disk"
        disk.mkdir(exist_ok=True)
        guest = Guest(instance.id, folder, disk, instance.private_ip)
        guest.variables = {
            "PATH": f"{self._bin}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder),
            "EPHEMERAL_GUEST": instance.id,
            "PYTEST_EPHEMERAL_ROOT": str(disk),
            "PYTEST_EPHEMERAL_RUN": str(folder / "run"),
            "PYTEST_EPHEMERAL_HOME": str(folder / "home"),
            "PYTEST_EPHEMERAL_CONSOLE": str(guest.console),
            "PYTEST_EPHEMERAL_PAUSES": "0.1 0.1",
            "PYTEST_EPHEMERAL_IMDS": f"{self.url}/_imds/{instance.id}",
        }
        for name in ("PIP_INDEX_URL", "PIP_CONFIG_FILE", "SSL_CERT_FILE", "PIP_CERT", "NO_PROXY"):
            if name in os.environ:
                guest.variables[name] = os.environ[name]
        with guest.console.open("a") as console:
            console.write("[    0.000000] Linux version 6.1\r\ncloud-init: running\r\n")
        with self._lock:
            self._guests[instance.id] = guest
        script = folder / "user-data"
        data = base64.b64decode(str(instance.user_data or ""))
        script.write_bytes(data)
        is_new = keep_as_cloud_init_does(self._cloud_init(guest), data)
        if not self.real:
            guest.console.write_text("pytest-ephemeral:end:0| 0\n")
        elif script.stat().st_size and is_new:
            self.run(guest, ["/bin/sh", str(script)], folder / "cloud-init.log")

    def renew(self, id: str, ami: str) -> None:
        """Give an instance whose processes have ended a new root volume: the AMI's content."""
        guest = self._guests[id]
        for one in (guest.folder / "home", guest.folder / "run", self._cloud_init(guest)):
            shutil.rmtree(one, ignore_errors=True)
        if disk := self._disks.get(ami):
            guest.disk = disk

    def cloud_init(self, id: str) -> Path:
        """Return the folder of cloud-init's data about an instance."""
        return self._cloud_init(self._guests[id])

    @staticmethod
    def _cloud_init(guest: Guest) -> Path:
        return guest.disk / "var/lib/cloud/instances" / guest.id

    def run(self, guest: Guest, argv: list[str], log: Path) -> None:
        with log.open("w") as output:
            process = subprocess.Popen(
                argv,
                cwd=guest.folder,
                env=guest.variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        threading.Thread(target=process.wait, daemon=True).start()

    def image(self, instance: str, ami: str) -> None:
        """Make an AMI of an instance's disk."""
        if guest := self._guests.get(instance):
            self._disks[ami] = guest.disk

    def disk(self, ami: str) -> Path | None:
        """Return the folder with the content of an AMI."""
        return self._disks.get(ami)

    def end(self, id: str) -> None:
        """End all processes of an instance."""
        guest = self._guests.get(id)
        if guest is not None and self.real:
            guest.end()

    def close(self) -> None:
        for guest in list(self._guests.values()):
            guest.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- Systems Manager ---------------------------------------------------------------------

    def send(self, id: str, script: str, seconds: float) -> str:
        """Run a command, as the SSM agent does."""
        guest = self._guests[id]
        command = f"{secrets.token_hex(4)}-{secrets.token_hex(2)}-4000-8000-{secrets.token_hex(6)}"
        process = subprocess.Popen(
            ["/bin/sh", "-c", script],
            cwd=guest.folder,
            env=guest.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        guest.commands[command] = process
        threading.Thread(target=self._wait, args=(process, seconds), daemon=True).start()
        return command

    def _wait(self, process: subprocess.Popen[str], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        process.output, process.errors = "", ""  # type: ignore[attr-defined]
        try:
            process.output, process.errors = process.communicate(  # type: ignore[attr-defined]
                timeout=deadline - time.monotonic()
            )
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        process.told = True  # type: ignore[attr-defined]

    def invocation(self, id: str, command: str) -> dict[str, Any] | None:
        """Return the status and the output of a command."""
        guest = self._guests.get(id)
        process = None if guest is None else guest.commands.get(command)
        if process is None:
            return None
        if not getattr(process, "told", False):
            return {"Status": "InProgress", "ResponseCode": -1}
        status = process.returncode
        return {
            "Status": "Success" if status == 0 else "Failed",
            "ResponseCode": status if status >= 0 else 128 - status,
            "StandardOutputContent": process.output,  # type: ignore[attr-defined]
            "StandardErrorContent": process.errors,  # type: ignore[attr-defined]
        }
