"""Launch a machine: resume it from frozen memory if that fits, else boot it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Final

import msgspec

from pytest_ephemeral.errors import EphemeralError, LaunchError
from pytest_ephemeral.models import Environment, Image
from pytest_ephemeral.providers.ec2 import user_data
from pytest_ephemeral.providers.endpoints import make_endpoints
from pytest_ephemeral.providers.local import network
from pytest_ephemeral.providers.local.guarded import held as guards
from pytest_ephemeral.providers.local.prefix import Prefix, share
from pytest_ephemeral.providers.local.reference import AS_IT_IS
from pytest_ephemeral.providers.protocol import COLD_BOOT, RESUMED, SEEDED, TO_FREEZE, Order
from pytest_ephemeral.providers.qemu import machines, memory, programs, replacement
from pytest_ephemeral.providers.qemu.content import Content
from pytest_ephemeral.providers.qemu.fit import describe_difference, describe_fit
from pytest_ephemeral.providers.qemu.hardware import GUEST, Hardware
from pytest_ephemeral.providers.qemu.machines import MachineFolder, Start
from pytest_ephemeral.providers.qemu.memory import Memory
from pytest_ephemeral.providers.qemu.qmp import MachineError
from pytest_ephemeral.providers.qemu.restore import WakeRequest
from pytest_ephemeral.providers.qemu.tables import QemuTemplate

#: In an environment's handle: set if the boot script starts processes, and numbers their lines.
OWN: Final = "own-processes"
#: In an environment's handle: the guest's ports, as JSON.
PORTS: Final = "ports"

#: Seconds to wait for the boot of a machine whose memory is to be frozen.
BOOT_PATIENCE: Final = 600.0


class Plan(msgspec.Struct, frozen=True):
    """All facts that are needed to start a machine."""

    order: Order
    template: QemuTemplate
    image: Image
    place: MachineFolder
    start: Start

    @property
    def is_booted_only(self) -> bool:
        """Whether its frozen memory is from before the application's start."""
        return self.template.warm == "booted"

    @property
    def script(self) -> str:
        """The user data of its first boot."""
        return user_data.boot_script(
            self.order.environment,
            self.template,
            self.order.variables,
            self.order.secrets,
            user_data.PREFIX,
            host=GUEST,
        )

    @property
    def wake_request(self) -> WakeRequest:
        """The request that gives a resumed machine this environment's identity."""
        known = user_data.guest_variables(
            self.order.environment, self.template, self.order.variables, host=GUEST
        )
        return WakeRequest(variables=known, variables_file=user_data.assignments(known))

    @property
    def fits(self) -> dict[str, str]:
        """The conditions that frozen memory must meet; see ``describe_fit``."""
        return describe_fit(
            self.start,
            self.image,
            template=None if self.is_booted_only else self.template,
            variables={} if self.is_booted_only else self.order.variables,
        )

    def start_from(self, found: Memory) -> Start:
        """How to start the machine from frozen memory; ports are forwarded later."""
        return msgspec.structs.replace(
            self.start, forwards={}, memory=found.ram, fresh_disk=found.fresh_disk
        )


def launch(order: Order) -> Environment:
    """Create the folder, claim an address, and start a guard with QEMU.

    Raises:
        LaunchError: The machine can't be started.
    """
    template, image = _parts_of(order)
    content = Content.of(image)
    if missing := [path for path in content.files() if not path.is_file()]:
        raise LaunchError(
            f"the image {image.name!r} is not at {missing[0]} any more. "
            f"Bake it again with: pytest-ephemeral bake {image.name}"
        )
    place = MachineFolder.of(order.environment.id)
    with ExitStack() as closing:
        lock = place.make(order.environment.labels)
        closing.callback(os.close, lock)
        descriptors = [lock]
        if AS_IT_IS not in image.handle:
            descriptors.append(share(Prefix(content.disk.parent)))
            closing.callback(os.close, descriptors[-1])
        claim = network.claim(template.endpoints())
        closing.callback(claim.close)
        plan = make_plan(order, {name: (claim.host, port) for name, port in claim.ports.items()})
        handle = _start(plan, [*descriptors, *claim.descriptors])
    endpoints = make_endpoints(claim.host, claim.ports, template.scheme)
    return msgspec.structs.replace(
        order.environment,
        endpoints=endpoints,
        url=next((endpoint.url for endpoint in endpoints.values()), ""),
        handle={"host": claim.host, **handle},
    )


def make_plan(order: Order, addresses: Mapping[str, tuple[str, int]] | None = None) -> Plan:
    """Make the plan of a machine.

    Args:
        order: The order for the environment.
        addresses: The address and port of each endpoint; by default those of the environment.
    """
    template, image = _parts_of(order)
    if addresses is None:
        known = order.environment.endpoints
        addresses = {name: (one.host, one.port) for name, one in known.items()}
    forwards = {port: addresses[name] for name, port in template.endpoints().items()}
    start = Start(Hardware.of(template), Content.of(image), forwards, disk=template.disk)
    return Plan(order, template, image, MachineFolder.of(order.environment.id), start)


def _parts_of(order: Order) -> tuple[QemuTemplate, Image]:
    assert isinstance(order.template, QemuTemplate)
    assert order.image is not None
    return order.template, order.image


def _start(plan: Plan, descriptors: Sequence[int]) -> dict[str, str]:
    """Start the machine; return the environment's handle."""
    handle = {
        "folder": str(plan.place.path),
        PORTS: json.dumps(list(plan.start.forwards)),
        **({OWN: "yes"} if plan.template.processes() else {}),
    }
    machines.write_seed(plan.place, plan.script)
    try:
        found = _find_memory(plan) if plan.template.warm else None
    except EphemeralError as error:
        found = None
        handle |= {COLD_BOOT: str(error)} | ({} if plan.is_booted_only else {TO_FREEZE: "yes"})
    start = plan.start if found is None else plan.start_from(found)
    environment = plan.order.environment
    guards[environment.id] = machines.start_machine(
        plan.place,
        start,
        descriptors=descriptors,
        expires_at=environment.expires_at,
        secrets=plan.order.secrets,
        settle=plan.order.settle,
    )
    return handle if found is None else handle | _resume_or_boot(plan, found)


# -- from memory ---------------------------------------------------------------------------


def _find_memory(plan: Plan) -> Memory:
    """Find frozen memory that fits; with ``warm = "booted"``, make it if there is none.

    Raises:
        EphemeralError: There is none that fits; the message has the reason.
    """
    found = Memory.of(plan.fits)
    if plan.is_booted_only:
        with memory.hold(found):
            if not found.exists():
                _boot_and_freeze(plan, found)
    if not found.exists():
        raise EphemeralError(describe_difference(plan.fits))
    try:
        found.require_usable()
    except MachineError:
        found.remove()  # so that a later environment is frozen again
        raise
    found.touch()
    return found


def _boot_and_freeze(plan: Plan, new: Memory) -> None:
    """Boot a machine without its application, and freeze it."""
    start = msgspec.structs.replace(plan.start, forwards={})
    with (
        new.make(programs.to_bytes(start.hardware.memory)) as folder,
        machines.temporary(
            f"memory-{plan.image.name}",
            start,
            machines.UP_SCRIPT,
            key=plan.image.key,
            lifetime=BOOT_PATIENCE + 60,
        ) as machine,
    ):
        machine.wait_until_up(BOOT_PATIENCE)
        memory.freeze(machine.id, machine.place.state, folder, {})
    new.seal(plan.fits, plan.image.digest)


def _resume_or_boot(plan: Plan, found: Memory) -> dict[str, str]:
    """Resume the machine from memory; if that fails, boot it. Return entries for its handle."""
    try:
        resume(plan, found, boot=plan.is_booted_only)
    except (EphemeralError, OSError) as error:
        found.remove()  # later environments would fail, too
        replacement.replace_machine(plan.place, plan.start)
        why = f"its memory could not be resumed: {error}"
        return {COLD_BOOT: why, **({} if plan.is_booted_only else {TO_FREEZE: "yes"})}
    seeded = {} if plan.is_booted_only else {SEEDED: "yes"}
    return {RESUMED: str(found.folder), **seeded}


def resume(plan: Plan, found: Memory, *, boot: bool) -> None:
    """Resume a waiting machine from memory, with this environment's identity.

    Args:
        plan: The environment's plan.
        found: The frozen memory.
        boot: Whether to start the application.

    Raises:
        MachineError: The machine can't be resumed.
    """
    request = plan.wake_request
    if boot:  # the boot script writes the variables itself
        request = msgspec.structs.replace(request, boot=plan.script, variables_file="")
    memory.resume(plan.place.path.name, plan.place.state, found, request, plan.start.forwards)
