"""Show that nothing is left of the environments in a report of ``--ephemeral-report``.

    python nothing_left.py report.json

Looks where an environment can leave something, without asking the program that removed it: at
every process's variables, at the addresses, and in the folder of running environments. The exit
status is 1 when anything is there.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pytest_ephemeral.labels import ENVIRONMENT_VARIABLE
from pytest_ephemeral.machine import state_directory


def main(report: str) -> int:
    """Look, and say what was found."""
    environments = json.loads(Path(report).read_text())["environments"]
    left = [line for environment in environments for line in leftovers(environment)]
    for line in left:
        print(f"LEFT: {line}")
    print(
        f"{len(environments)} environments were up; of them are left:"
        f" {len(left) or 'no'} processes, addresses or folders."
    )
    return 1 if left or not environments else 0


def leftovers(environment: dict[str, Any]) -> Iterator[str]:
    """What there still is of one environment, a line each."""
    name = environment["id"]
    for process in processes():
        if f"{ENVIRONMENT_VARIABLE}={name}" in process:
            yield f"{name}: a process: {process.strip()[:80]}"
    for url in environment["endpoints"].values():
        host, _, port = url.rpartition("/")[0].rpartition("/")[2].rpartition(":")
        with socket.socket() as client:
            if client.connect_ex((host, int(port))) == 0:
                yield f"{name}: something answers at {url}"
    if (state_directory() / "environments" / name).exists():
        yield f"{name}: its folder {state_directory() / 'environments' / name}"


def processes() -> Iterator[str]:
    """The variables of every process that may be looked at; elsewhere than on Linux, ask ps."""
    if sys.platform != "linux":
        yield from subprocess.run(
            ["ps", "axeww"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        return
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            # One line a process: its id, and its variables with a space between them.
            variables = environ.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended, or is somebody else's
        yield f"{environ.parent.name} {variables}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
