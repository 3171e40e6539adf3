"""The configuration keys of the qemu provider's recipes and templates."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from pytest_ephemeral.durations import Duration
from pytest_ephemeral.tables import Name, Recipe, Table, Template

#: A size in mebibytes or gibibytes, in QEMU's form.
Size = Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]{0,6}[MG]$(?!\n)")]
Count = Annotated[int, msgspec.Meta(ge=1, le=255)]

#: The command line of a kernel that QEMU starts directly.
APPEND = "root=/dev/vda rw console=ttyS0"


class Download(Table, frozen=True, kw_only=True):
    """A disk image that is downloaded once, and checked.

    Attributes:
        url: The URL of the disk image.
        sha256: The SHA-256 of the disk image, in hexadecimal, as in ``SHA256SUMS`` files.
    """

    url: Annotated[str, msgspec.Meta(pattern=r"^https?://")]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]


class QemuRecipe(Recipe, frozen=True, kw_only=True):
    """A disk image: baked from a ``base``, or a ``reference`` to one that was made elsewhere.

    Attributes:
        base: The cloud image to install into (qcow2 or raw), as a path or
            ``{ url = …, sha256 = … }``. It needs cloud-init and the QEMU guest agent.
        kernel: A kernel that QEMU starts directly, for a disk without a boot loader.
        initrd: The kernel's initial RAM disk.
        append: The kernel's command line.
        disk: The size of the disk, if larger than the base's.
        memory: The memory of the bake's machine.
        cpus: The number of processors of the bake's machine.
        timeout: How long the installation may take, and the boot for ``verify``.
    """

    provider: str = "qemu"
    base: str | Download | None = None
    kernel: str | None = None
    initrd: str | None = None
    append: str = APPEND
    disk: Size | None = None
    memory: Size = "1G"
    cpus: Count = 1
    timeout: Duration = Duration(1800)

    def check(self) -> None:
        """Check that there is one of ``base`` and ``reference``, with the keys that it needs."""
        super().check()
        if (self.base is None) == (self.reference is None):
            raise ValueError(
                "give either base (the disk image to install into) or reference (a disk image)"
            )
        if self.base is not None and not self.install:
            raise ValueError("it has a base: give install, too (the commands to run in it)")
        if self.initrd is not None and self.kernel is None:
            raise ValueError("an initrd needs its kernel: give kernel")


class QemuTemplate(Template, frozen=True, kw_only=True):
    """A virtual machine.

    Attributes:
        command: A shell command to start at boot, or several by process name. Leave it out if the
            image starts its application by itself. Commands have ``$PREFIX``, ``$HOST``, ``$PORT``,
            and ``$STATE``, their working folder. When one exits, the environment ends.
        memory: The memory of the machine.
        cpus: The number of processors.
        disk: The size of its disk, if larger than the image's.
        machine: QEMU's machine type.
        cpu: The processor's model; by default the host's, or a common one if it is emulated.
        accelerator: QEMU's accelerator; ``auto`` tries the one that this machine has.
        warm: Resume from frozen memory instead of booting: ``true`` from the time when the first
            environment was ready and seeded, ``"booted"`` from before its command was started.
        user_data: A shell script to run at boot, before the command.
    """

    provider: str = "qemu"
    command: str | dict[Name, str] | None = None
    memory: Size = "512M"
    cpus: Count = 1
    disk: Size | None = None
    machine: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]+$")] = "q35"
    cpu: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9.,+=_-]+$")] | None = None
    accelerator: Literal["auto", "kvm", "hvf", "tcg"] = "auto"
    warm: bool | Literal["booted"] = False
    user_data: str | None = None

    def check(self) -> None:
        """Check that it has an image, and a command if it needs one."""
        if self.image is None:
            raise ValueError("it needs an image")
        if self.command is not None and not all(map(str.strip, self.processes().values())):
            raise ValueError("its command is empty: name the program to start")
        if self.warm == "booted" and self.command is None:
            raise ValueError(
                'warm = "booted" needs a command, which starts after the memory is resumed: '
                "give one, or use warm = true"
            )

    def processes(self) -> dict[str, str]:
        """Its commands by process name, in the order in which they are started."""
        if isinstance(self.command, dict):
            return dict(self.command)
        return {} if self.command is None else {"app": self.command}
