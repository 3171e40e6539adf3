"""Prepare a guest before its memory is frozen, and give it a new identity when it is resumed.

Two machines that are resumed from the same memory would have the same random numbers, time and
identity. So before the application's ports are forwarded, the guest gets entropy from this machine
and reseeds its random number generator, sets its clock, renews its machine-id and host keys, writes
its variables, and runs the image's ``after-restore`` hooks.
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

#: Seconds to wait for an image's hooks.
PATIENCE = 120.0


class WakeRequest(msgspec.Struct, frozen=True):
    """The identity of a resumed machine.

    Attributes:
        variables: The environment's variables, for the hooks.
        variables_file: The file of variables for commands, in the boot script's format; empty to
            keep the guest's file.
        boot: The boot script for a machine that was frozen before its application started.
    """

    variables: Mapping[str, str] = {}
    variables_file: str = ""
    boot: str = ""


@contextmanager
def prepare(id: str, folder: Path, variables: Mapping[str, str]) -> Iterator[None]:
    """Run the ``before-snapshot`` hooks, and keep the guest waiting for a request in this block.

    The connection stays open: if the port is connected both when the guest is frozen and when it
    is resumed, the guest does not have to handle a change.

    Raises:
        MachineError: The guest has no agent or no Python, or a hook failed.
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
    """The source of the restore helper, which runs in the guest."""
    return files(__package__).joinpath("guest/restore.py").read_text()


def _is_running(id: str, folder: Path) -> bool:
    """Whether the helper runs: whether its port is open in the guest."""
    with qmp.open_monitor(id, folder) as monitor:
        known = {one["label"]: one["frontend-open"] for one in monitor.call("query-chardev")}
    return bool(known["restore"])


def wake(id: str, folder: Path, request: WakeRequest) -> None:
    """Give a machine its own identity after it was frozen.

    Raises:
        MachineError: It failed, so the machine might have another's random numbers.
    """
    with qmp.open_helper(id, folder) as helper:
        send(helper, request)
        wait(helper)


def send(helper: qmp.MachineConnection, request: WakeRequest) -> None:
    """Send a request to the helper, which handles it as soon as the guest runs."""
    helper.send(
        {
            "do": "wake",
            **msgspec.to_builtins(request),
            "entropy": secrets.token_hex(64),
            "machine_id": secrets.token_hex(16),
            "time": time.time(),
        }
    )


def wait(helper: qmp.MachineConnection) -> None:
    """Wait until the helper has handled the request.

    Raises:
        MachineError: It failed, or did not answer in time.
    """
    _expect(helper.id, helper, "done", "waking")


def _expect(id: str, helper: qmp.MachineConnection, word: str, what: str) -> None:
    answer = helper.receive(time.monotonic() + PATIENCE)
    if word not in answer:
        raise MachineError(f"{id}: {what} failed: {answer.get('error', answer)}")
