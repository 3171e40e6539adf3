"""The keys that recipes and templates of the qemu provider have."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from pytest_ephemeral.durations import Duration
from pytest_ephemeral.tables import Name, Recipe, Table, Template

#: As QEMU takes it: mebibytes or gibibytes.
Size = Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]{0,6}[MG]$(?!\n)")]
Count = Annotated[int, msgspec.Meta(ge=1, le=255)]

#: What a kernel is told that QEMU starts directly.
APPEND = "root=/dev/vda rw console=ttyS0"


class Download(Table, frozen=True, kw_only=True):
    """A disk image that is fetched once, and checked.

    Attributes:
        url: Where it is.
        sha256: Its digest, as ``SHA256SUMS`` files have it.
    """

    url: Annotated[str, msgspec.Meta(pattern=r"^https?://")]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]


class QemuRecipe(Recipe, frozen=True, kw_only=True):
    """A disk: ``base`` with something installed, or a ``reference`` prepared elsewhere.

    Attributes:
        base: What is installed into: a cloud image, qcow2 or raw, as a path or
            ``{ url = …, sha256 = … }``. Cloud-init and the QEMU guest agent are in it.
        kernel: A kernel that QEMU starts directly, for a disk without a boot loader.
        initrd: Its initial RAM disk.
        append: Its command line.
        disk: The size of the disk, if more than the base's.
        memory: What the machine has that bakes it.
        cpus: How many processors that has.
        timeout: How long installing may take, and a boot when it is verified.
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
        """It is made in one way."""
        super().check()
        if (self.base is None) == (self.reference is None):
            raise ValueError(
                "give one of base (what is installed into) and reference (a disk image)"
            )
        if self.base is not None and not self.install:
            raise ValueError("it has a base: give install too (what puts the artifact into it)")
        if self.initrd is not None and self.kernel is None:
            raise ValueError("an initrd needs its kernel: give kernel")


class QemuTemplate(Template, frozen=True, kw_only=True):
    """A virtual machine.

    Attributes:
        command: A shell command that serves, or several by process name, started at boot; left
            out where the image starts its application by itself. They see ``$PREFIX``, ``$HOST``,
            ``$PORT`` and ``$STATE``, where they start. When one exits, so does the environment.
        memory: Of the machine.
        cpus: How many processors it has.
        disk: The size of its disk, if more than the image's.
        machine: The machine type.
        cpu: The processor's model; by default the host's, or a plain one where it is emulated.
        accelerator: What runs it; ``auto`` tries what the machine has, and remembers.
        warm: Resume from memory instead of booting: ``true``, from the moment when the first one
            was ready and seeded; ``"booted"``, from before its command was started.
        user_data: A shell script of yours, run at boot before the command.
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
        """There is something to run."""
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
        """Its commands by process name, in starting order."""
        if isinstance(self.command, dict):
            return dict(self.command)
        return {} if self.command is None else {"app": self.command}
