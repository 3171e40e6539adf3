"""The virtual hardware of a machine, as QEMU's arguments."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Self

import msgspec

from pytest_ephemeral.providers.qemu import accelerators, programs
from pytest_ephemeral.providers.qemu.content import Content
from pytest_ephemeral.providers.qemu.tables import QemuRecipe, QemuTemplate

#: The guest's address in QEMU's user-mode network, which each machine has its own of.
GUEST: Final = "10.0.2.15"

#: The names of files in a machine's folder.
DISK: Final = "disk.qcow2"
SEED: Final = "seed"

#: The name of a memfd (memfd_create(2)) with a machine's memory, as QEMU itself names it.
MEMORY_NAME: Final = "memory-backend-memfd"
#: The file descriptor of memory that was created before QEMU started: ``Hardware.launcher``.
_DESCRIPTOR: Final = 9
_MAKE_MEMORY: Final = f"""\
import os, sys
memory = os.memfd_create("{MEMORY_NAME}", 0)
os.truncate(memory, int(sys.argv[1]))
os.dup2(memory, {_DESCRIPTOR})
os.execv(sys.argv[2], sys.argv[2:])
"""


class Hardware(msgspec.Struct, frozen=True):
    """The hardware of a machine.

    Attributes:
        memory: The size of its memory, such as ``512M``.
        cpus: The number of processors.
        machine: QEMU's machine type.
        accelerator: QEMU's accelerator.
        cpu: The processor's model.
        freezes: Whether its memory may be frozen.
    """

    memory: str
    cpus: int
    machine: str
    accelerator: str
    cpu: str
    freezes: bool = False

    @classmethod
    def of(cls, wanted: QemuTemplate | QemuRecipe) -> Self:
        """The hardware for a template or a recipe, with defaults for keys that are not set."""
        asked = wanted.accelerator if isinstance(wanted, QemuTemplate) else "auto"
        accelerator = accelerators.choose() if asked == "auto" else asked
        named = wanted.cpu if isinstance(wanted, QemuTemplate) else None
        freezes = isinstance(wanted, QemuTemplate) and bool(wanted.warm or wanted.rollback)
        return cls(
            memory=wanted.memory,
            cpus=wanted.cpus,
            machine=wanted.machine if isinstance(wanted, QemuTemplate) else "q35",
            accelerator=accelerator,
            cpu=named or accelerators.default_cpu(accelerator),
            freezes=freezes,
        )

    def launcher(self, memory: Path | None) -> list[str]:
        """A command prefix that creates the memory before QEMU starts; empty if QEMU creates it.

        From 8.1 on, migration leaves memory out only if QEMU opened it by a path. A file in
        /dev/shm has a path, but that file system may be full, and has 64 MB in containers. QEMU
        would then be killed by SIGBUS. A memfd has a path in /proc, and is limited by the
        computer's memory only.

        Args:
            memory: See ``argv``.
        """
        if memory is not None or not self._needs_path:
            return []
        size = str(programs.to_bytes(self.memory))
        return [sys.executable, "-I", "-S", "-c", _MAKE_MEMORY, size]

    @property
    def _needs_path(self) -> bool:
        """Whether migration leaves memory out only if QEMU opened it by a path."""
        if sys.platform != "linux" or not self.freezes:
            return False
        return programs.release(programs.find(programs.SYSTEM)) >= (8, 1)

    def argv(self, memory: Path | None) -> list[str]:
        """QEMU's arguments for the hardware.

        Args:
            memory: A file with frozen memory, which is mapped copy-on-write; None for new memory.
        """
        # Multi-threaded emulation even for one processor: then devices have their own thread.
        accelerator = "tcg,thread=multi" if self.accelerator == "tcg" else self.accelerator
        return [
            *("-accel", accelerator, "-cpu", self.cpu, "-smp", str(self.cpus)),
            *("-machine", f"{self.machine},memory-backend=ram,graphics=off", "-m", self.memory),
            *("-object", self._memory_object(memory)),
        ]

    def _memory_object(self, file: Path | None) -> str:
        size = programs.to_bytes(self.memory)
        if file is not None:
            return f"memory-backend-file,id=ram,size={size},mem-path={_escape(file)},share=off"
        # Shared, so that migration leaves it out (x-ignore-shared), and not in a file on a disk.
        if sys.platform != "linux":
            return f"memory-backend-ram,id=ram,size={size}"
        if self._needs_path:
            path = f"/proc/self/fd/{_DESCRIPTOR}"
            return f"memory-backend-file,id=ram,size={size},mem-path={path},share=on"
        return f"memory-backend-memfd,id=ram,size={size},share=on"


def device_argv(
    content: Content, *, forwards: Mapping[int, tuple[str, int]], artifact: Path | None
) -> list[str]:
    """QEMU's arguments for disks, network, console and control sockets.

    Args:
        content: The files to boot from; ``DISK`` is an overlay over their disk.
        forwards: By the guest's port: the address and port on this machine.
        artifact: A bake's artifact, which becomes a disk of its own.
    """
    net = ",".join(["user,id=net", *map(_forward, forwards.items())])
    disks = [_disk("root", f"file={DISK},format=qcow2,cache=unsafe,discard=unmap")]
    disks.append(_disk("seed", f"driver=vvfat,dir={SEED},label=CIDATA,read-only=on"))
    if artifact is not None:
        disks.append(_disk("artifact", f"file={_escape(artifact)},format=raw,read-only=on"))
    ports = {"agent": "org.qemu.guest_agent.0", "restore": "pytest-ephemeral.restore"}
    channels = ["-device", "virtio-serial-pci"]
    for name, port in ports.items():
        channels += ["-chardev", f"socket,id={name},path={name},server=on,wait=off"]
        channels += ["-device", f"virtserialport,chardev={name},name={port}"]
    return [
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-qmp", "unix:monitor,server=on,wait=off"),
        *(word for disk in disks for word in disk),
        *("-netdev", net, "-device", "virtio-net-pci,netdev=net,romfile="),
        *("-device", "virtio-rng-pci", "-device", "vmgenid,guid=auto"),
        *channels,
        *content.argv(),
    ]


def _disk(name: str, options: str) -> Iterable[str]:
    return [
        *("-drive", f"if=none,id={name},{options}"),
        *("-device", f"virtio-blk-pci,drive={name},serial={name}"),
    ]


def _forward(forward: tuple[int, tuple[str, int]]) -> str:
    port, (host, outside) = forward
    return f"hostfwd={describe_forward(host, outside, port)}"


def describe_forward(host: str, outside: int, port: int) -> str:
    """A port forward in QEMU's form: from an address of this machine to a port of the guest."""
    return f"tcp:{host}:{outside}-{GUEST}:{port}"


def _escape(path: Path) -> str:
    """Escape a path for QEMU's options, in which a comma ends a value."""
    return str(path).replace(",", ",,")
