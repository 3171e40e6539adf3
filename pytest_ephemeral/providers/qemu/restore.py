"""The restore contract: what happens in a guest before its memory is frozen, and when it wakes.

Two machines of one memory would draw the same random numbers, tell the same time, and call
themselves the same. So, before the port of the application is let in: entropy from this machine is
added and the guest's generator reseeded, its clock set, its machine-id and host keys renewed, its
variables written, and the image's ``after-restore`` hooks run.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from pytest_ephemeral.providers.qemu import qmp
from pytest_ephemeral.providers.qemu.qmp import MachineError

#: Seconds in which the hooks of an image are expected to be done.
PATIENCE = 120.0


class Waking(msgspec.Struct, frozen=True):
    """What makes a machine one of its own.

    Attributes:
        variables: Of the environment, for the hooks.
        variables_file: What ``run`` gives to commands, as the boot script writes it; empty to
            leave what is there.
        boot: A boot script for a machine that was frozen before its application started.
    """

    variables: Mapping[str, str] = {}
    variables_file: str = ""
    boot: str = ""


def prepare(id: str, folder: Path, variables: Mapping[str, str]) -> None:
    """Start the helper in a guest, and run the ``before-snapshot`` hooks; it waits then.

    Raises:
        MachineError: There is no agent or no Python in the guest, or a hook failed.
    """
    program = files(__package__).joinpath("guest/restore.py").read_text()
    with qmp.open_helper(id, folder) as helper:
        with qmp.open_agent(id, folder) as agent:
            agent.call("guest-exec", path="/usr/bin/python3", arg=["-Ic", program])
        _expect(id, helper, "ready", "starting the restore helper (python3)")
        helper.send({"variables": dict(variables)})
        _expect(id, helper, "done", "the before-snapshot hooks")


def wake(id: str, folder: Path, waking: Waking) -> None:
    """Make a machine that has just been resumed one of its own.

    Raises:
        MachineError: It can't be: two machines might draw the same random numbers.
    """
    with qmp.open_helper(id, folder) as helper:
        helper.send(
            {
                **msgspec.to_builtins(waking),
                "entropy": secrets.token_hex(64),
                "machine_id": secrets.token_hex(16),
                "time": time.time(),
            }
        )
        _expect(id, helper, "done", "waking")


def _expect(id: str, helper: qmp.MachineConnection, word: str, what: str) -> dict[str, Any]:
    answer = helper.receive(time.monotonic() + PATIENCE)
    if word not in answer:
        raise MachineError(f"{id}: {what} failed: {answer.get('error', answer)}")
    return answer
