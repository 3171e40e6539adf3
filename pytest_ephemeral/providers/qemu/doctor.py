"""The checks of ``pytest-ephemeral doctor`` for the qemu provider."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.providers.protocol import Check
from pytest_ephemeral.providers.qemu import accelerators, programs


def checks() -> Sequence[Check]:
    """Run all checks; they change nothing, but the accelerator that works is saved."""
    found = [_program(program) for program in (programs.SYSTEM, programs.IMG)]
    return [*found, _accelerator()] if all(check.ok for check in found) else found


def _program(program: str) -> Check:
    try:
        path = programs.find(program)
    except EphemeralError as error:
        return Check(program, ok=False, detail="not on PATH", hint=str(error))
    return Check(program, ok=True, detail=programs.version(path))


def _accelerator() -> Check:
    chosen = accelerators.choose()
    if chosen != accelerators.TCG:
        return Check("accelerator", ok=True, detail=chosen)
    wanted = accelerators.find_candidate()
    why = (
        f"{wanted}: {accelerators.recall_refusal()}"
        if wanted
        else "no hardware acceleration was found"
    )
    return Check(
        "accelerator",
        ok=True,
        detail=f"tcg (emulated); {why}",
        hint="a boot takes about 20 s instead of 2; with warm = true, only the first boot does",
    )
