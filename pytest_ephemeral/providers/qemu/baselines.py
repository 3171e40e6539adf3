"""Freeze environments that are ready and seeded: to resume later ones, and to roll back."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import msgspec

from pytest_ephemeral.errors import EphemeralError, UnavailableError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers import external_state
from pytest_ephemeral.providers.protocol import COLD_BOOT, RESUMED, SEEDED, Order
from pytest_ephemeral.providers.qemu import memory, programs, replacement, restore
from pytest_ephemeral.providers.qemu.hardware import GUEST
from pytest_ephemeral.providers.qemu.launch import Plan, make_plan, resume
from pytest_ephemeral.providers.qemu.memory import Memory
from pytest_ephemeral.providers.qemu.tables import QemuTemplate
from pytest_ephemeral.tables import Template

#: The host names of a database inside the machine.
_INSIDE: Final = ("localhost", "127.0.0.1", GUEST)

#: In an environment's handle: the folder of the frozen memory that a rollback resumes.
_BASELINE: Final = "baseline"


class MachineBaselines:
    """Freeze and roll back machines; see ``SupportsRollback`` and ``SupportsFreeze``."""

    def check_rollback(self, template: Template, root: Path) -> None:  # noqa: ARG002
        """Refuse databases outside, and systems other than Linux, which can't freeze machines."""
        if sys.platform != "linux":
            raise UnavailableError(
                f"templates.{template.name}: machines are only put back on Linux: write a command "
                "that does (`reset`), or give each test an environment of its own"
            )
        assert isinstance(template, QemuTemplate)
        commands = template.processes().values()
        external_state.refuse_databases(template, dict(os.environ), commands=commands, own=_INSIDE)

    def freeze(self, order: Order) -> Environment:
        """Freeze the memory of a ready and seeded environment, from which later ones resume."""
        plan, environment = make_plan(order), order.environment
        found = Memory.of(plan.fits)
        try:
            with memory.hold(found):
                if not found.exists():
                    _freeze(plan, found)
                    found.seal(plan.fits, plan.image.digest)
        except EphemeralError as error:
            why = f"its memory could not be frozen: {error}"
            return _with(environment, {COLD_BOOT: why})
        return environment

    def refuse_memory(self, environment: Environment, why: str) -> None:
        """Mark the frozen memory as refused, so that no launch resumes it."""
        Memory(Path(environment.handle[RESUMED])).refuse(f"`images vet` found that {why}")

    def take_baseline(self, order: Order) -> Environment:
        """Freeze the environment; if it was resumed after seeding, use that memory instead."""
        plan, environment = make_plan(order), order.environment
        known = environment.handle.get(RESUMED)
        if known and SEEDED in environment.handle:
            return _with(environment, {_BASELINE: known})
        found = Memory.of_environment(plan.place.path)
        _freeze(plan, found)
        return _with(environment, {_BASELINE: str(found.folder)})

    def roll_back(self, order: Order) -> Environment:
        """End QEMU, and start another that resumes the baseline, behind the same ports."""
        plan = make_plan(order)
        found = Memory(Path(order.environment.handle[_BASELINE]))
        replacement.replace_machine(plan.place, plan.start_from(found))
        resume(plan, found, boot=False)
        return order.environment


def _freeze(plan: Plan, new: Memory) -> None:
    """Freeze a running environment, and let it continue."""
    id, folder, request = plan.place.path.name, plan.place.state, plan.wake_request
    with new.make(programs.to_bytes(plan.start.hardware.memory)) as target:
        try:
            memory.freeze(id, folder, target, request.variables)
        finally:
            memory.continue_machine(id, folder)
        restore.wake(id, folder, request)


def _with(environment: Environment, more: dict[str, str]) -> Environment:
    return msgspec.structs.replace(environment, handle={**environment.handle, **more})
