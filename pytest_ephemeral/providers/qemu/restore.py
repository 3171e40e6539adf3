"""The restore contract: what happens in a guest before its memory is frozen, and when it wakes.

Two machines of one memory would draw the same random numbers, tell the same time, and call
themselves the same. So, before the port of the application is let in: entropy from this machine is
added and the guest's generator reseeded, its clock set, its machine-id and host keys renewed, its
variables written, and the image's ``after-restore`` hooks run.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

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


@contextmanager
def prepare(id: str, folder: Path, variables: Mapping[str, str]) -> Iterator[None]:
    """Run the ``before-snapshot`` hooks, and have the guest wait to be woken, in this block.

    Whoever wakes it then is at the other end of the port already, as is this process now: a guest
    that sees no change has nothing to do about it.

    Raises:
        MachineError: There is no agent or no Python in the guest, or a hook failed.
    """
    with qmp.open_helper(id, folder) as helper:
        if not _is_running(id, folder):
            with qmp.open_agent(id, folder) as agent:
                agent.call("guest-exec", path="/usr/bin/python3", arg=["-Ic", read_helper()])
            _expect(id, helper, "ready", "starting the restore helper (python3)")
        helper.send({"do": "prepare", "variables": dict(variables)})
        _expect(id, helper, "done", "the before-snapshot hooks")
        yield


def read_helper() -> str:
    """The program that waits in a guest."""
    return files(__package__).joinpath("guest/restore.py").read_text()


def _is_running(id: str, folder: Path) -> bool:
    """Whether the guest has the helper's port open."""
    with qmp.open_monitor(id, folder) as monitor:
        known = {one["label"]: one["frontend-open"] for one in monitor.call("query-chardev")}
    return bool(known["restore"])


def wake(id: str, folder: Path, waking: Waking) -> None:
    """Make a machine that was frozen one of its own.

    Raises:
        MachineError: It can't be: two machines might draw the same random numbers.
    """
    with qmp.open_helper(id, folder) as helper:
        send(helper, waking)
        wait(helper)


def send(helper: qmp.MachineConnection, waking: Waking) -> None:
    """Tell a guest how to wake: as soon as it runs, it does."""
    helper.send(
        {
            "do": "wake",
            **msgspec.to_builtins(waking),
            "entropy": secrets.token_hex(64),
            "machine_id": secrets.token_hex(16),
            "time": time.time(),
        }
    )


def wait(helper: qmp.MachineConnection) -> None:
    """Wait until it has woken.

    Raises:
        MachineError: It has not.
    """
    _expect(helper.id, helper, "done", "waking")


def _expect(id: str, helper: qmp.MachineConnection, word: str, what: str) -> None:
    answer = helper.receive(time.monotonic() + PATIENCE)
    if word not in answer:
        raise MachineError(f"{id}: {what} failed: {answer.get('error', answer)}")
