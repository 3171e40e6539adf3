"""Choose the accelerator for virtual machines: try it once, and save the result.

``/dev/kvm`` may exist and still not work (in containers, and with nested virtualization). Only the
first output of a guest proves that it works.
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

#: Seconds to wait for the firmware's first output, which takes 0.1 s if the accelerator works.
PATIENCE: Final = 8.0

#: Emulation, which is always available.
TCG: Final = "tcg"

#: The model of an emulated processor: x86-64-v2, which current distributions require.
EMULATED_CPU: Final = "Nehalem"


@cache
def choose() -> str:
    """The fastest accelerator that works on this machine: ``kvm``, ``hvf``, or ``tcg``."""
    wanted = find_candidate()
    if wanted is None:
        return TCG
    known = _read()
    key = _key(wanted)
    if key not in known:
        known = {key: refusal(wanted)}
        files.replace(_cache_file(), [json.dumps(known).encode()])
    return TCG if known[key] else wanted


def find_candidate() -> str | None:
    """The accelerator that this machine may have, which may not work; None if it has none."""
    if sys.platform == "darwin":
        return "hvf"
    return "kvm" if Path("/dev/kvm").exists() else None


def default_cpu(accelerator: str) -> str:
    """The processor's model if a template names none."""
    return EMULATED_CPU if accelerator == TCG else "host"


def refusal(accelerator: str, patience: float = PATIENCE) -> str:
    """Why an accelerator does not work on this machine, for people; empty if it works.

    Args:
        accelerator: QEMU's name of the accelerator.
        patience: Seconds to wait for the firmware's first output.
    """
    # SeaBIOS first writes its name to this port.
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
    """The conditions of a saved result: the boot of this machine, and QEMU's version."""
    version = programs.version(programs.find(programs.SYSTEM))
    return f"{accelerator} {machine.machine_id()} {machine.boot_id()} {version}"


def _cache_file() -> Path:
    return machine.state_directory() / "qemu-accelerator.json"


def _read() -> Mapping[str, str]:
    try:
        found = json.loads(files.read_regular(_cache_file()))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def recall_refusal() -> str:
    """Why this machine's accelerator was not chosen; empty if none was tried."""
    return next(iter(_read().values()), "")
