"""What runs virtual machines here: tried for real, and remembered.

``/dev/kvm`` may be there, open, and then run nothing (in containers, and where virtualization is
nested): only a guest's own first output proves that it works.
"""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

from pytest_ephemeral import files, machine
from pytest_ephemeral.providers.qemu import programs

#: Seconds until the firmware has printed something. It takes a tenth of one where it works.
PATIENCE: Final = 8.0

#: Emulation, which is always there.
TCG: Final = "tcg"

#: The processor's model where it is emulated: x86-64-v2, which distributions ask for by now.
EMULATED_CPU: Final = "Nehalem"


@cache
def choose() -> str:
    """The fastest accelerator that works here: ``kvm``, ``hvf``, or ``tcg``."""
    wanted = find_candidate()
    if wanted is None:
        return TCG
    known = _read()
    key = _key(wanted)
    if key not in known:
        known = {key: refusal(wanted)}
        files.replace(_memory(), [json.dumps(known).encode()])
    return TCG if known[key] else wanted


def find_candidate() -> str | None:
    """What this machine may have; whether it works is another question."""
    if sys.platform == "darwin":
        return "hvf"
    return "kvm" if Path("/dev/kvm").exists() else None


def default_cpu(accelerator: str) -> str:
    """The model of the processor where a template names none."""
    return EMULATED_CPU if accelerator == TCG else "host"


def refusal(accelerator: str, patience: float = PATIENCE) -> str:
    """Why an accelerator runs nothing here, for people; empty when a guest's firmware ran.

    Args:
        accelerator: As QEMU names it.
        patience: Seconds that the firmware has.
    """
    # SeaBIOS says its name on this port before it does anything else.
    argv = [
        *(programs.find(programs.SYSTEM), "-nodefaults", "-display", "none"),
        *("-accel", accelerator, "-cpu", default_cpu(accelerator), "-machine", "q35"),
        *("-chardev", "stdio,id=log", "-device", "isa-debugcon,iobase=0x402,chardev=log"),
    ]
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                if not selector.select(patience):
                    return f"its guest did nothing within {patience:g} s"
            if process.stdout.read1(1):  # type: ignore[attr-defined]
                return ""
            return process.stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
        finally:
            process.kill()


def _key(accelerator: str) -> str:
    """What the answer depends on: this boot of this machine, this user, and QEMU's version."""
    told = programs.version(programs.find(programs.SYSTEM))
    return f"{accelerator} {machine.machine_id()} {machine.boot_id()} {told}"


def _memory() -> Path:
    return machine.state_directory() / "qemu-accelerator.json"


def _read() -> Mapping[str, str]:
    try:
        found = json.loads(files.read_regular(_memory()))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def recall_refusal() -> str:
    """Why what this machine has was not chosen; empty if nothing was tried."""
    return next(iter(_read().values()), "")
