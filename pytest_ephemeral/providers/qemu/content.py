"""The files of an image: a disk; if it has no boot loader, also a kernel and an initrd."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Self

import msgspec

from pytest_ephemeral.models import Image
from pytest_ephemeral.providers.local.reference import AS_IT_IS, content_of

_DISK, _KERNEL, _INITRD, _APPEND = "disk.qcow2", "kernel", "initrd", "append"
_FORMAT: Final = "format"


class Content(msgspec.Struct, frozen=True):
    """The files that a machine boots from, which are never written to."""

    disk: Path
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    format: str = "qcow2"

    @classmethod
    def at(cls, folder: Path) -> Self:
        """The files in a sealed tree: a disk, and the files of ``copy_boot``."""
        kernel, initrd, append = (folder / name for name in (_KERNEL, _INITRD, _APPEND))
        return cls(
            disk=folder / _DISK,
            kernel=kernel if kernel.exists() else None,
            initrd=initrd if initrd.exists() else None,
            append=append.read_text() if append.exists() else "",
        )

    @classmethod
    def of(cls, image: Image) -> Self:
        """The files of an image on this machine."""
        handle = image.handle
        if AS_IT_IS not in handle:
            return cls.at(content_of(image))
        kernel, initrd = handle.get(_KERNEL), handle.get(_INITRD)
        return cls(
            disk=Path(image.reference),
            kernel=Path(kernel) if kernel else None,
            initrd=Path(initrd) if initrd else None,
            append=handle.get(_APPEND, ""),
            format=handle.get(_FORMAT, "qcow2"),
        )

    def files(self) -> list[Path]:
        """All files, the disk first."""
        return [path for path in (self.disk, self.kernel, self.initrd) if path is not None]

    def to_handle(self) -> dict[str, str]:
        """The entries in the handle of an image with a ``reference``, for ``of``."""
        known = {
            _KERNEL: self.kernel,
            _INITRD: self.initrd,
            _APPEND: self.append,
            _FORMAT: self.format,
        }
        return {name: str(value) for name, value in known.items() if value}

    def copy_boot(self, folder: Path) -> Path:
        """Copy all files but the disk into a folder; return the path for the disk."""
        for name, path in ((_KERNEL, self.kernel), (_INITRD, self.initrd)):
            if path is not None:
                (folder / name).write_bytes(path.read_bytes())
        if self.append and self.kernel is not None:
            (folder / _APPEND).write_text(self.append)
        return folder / _DISK

    def argv(self) -> list[str]:
        """QEMU's arguments for the kernel and the initrd."""
        if self.kernel is None:
            return []
        initrd = [] if self.initrd is None else ["-initrd", str(self.initrd)]
        return ["-kernel", str(self.kernel), *initrd, "-append", self.append]
