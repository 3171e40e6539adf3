"""Find and run the programs of QEMU, for example to create and describe disk images."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from pytest_ephemeral.errors import EphemeralError, UnavailableError

SYSTEM: Final = "qemu-system-x86_64"
IMG: Final = "qemu-img"

#: The package of each program, on Debian and its derivatives.
_PACKAGES: Final = {SYSTEM: "qemu-system-x86", IMG: "qemu-utils"}

_UNITS: Final = {"M": 1 << 20, "G": 1 << 30}


def find(program: str) -> str:
    """The path of one of QEMU's programs.

    Raises:
        UnavailableError: It is not installed; the message names the package.
    """
    found = shutil.which(program)
    if found is None:
        raise UnavailableError(
            f"the qemu provider needs {program}, which is not on PATH. On Debian and Ubuntu: "
            f"apt install {_PACKAGES[program]}; on macOS: brew install qemu"
        )
    return found


@cache
def version(program: str) -> str:
    """The first line of a program's ``--version``."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0].strip()


def release(program: str) -> tuple[int, int]:
    """A program's major and minor version; zeros if they are not known."""
    found = re.search(r"version (\d+)\.(\d+)", version(program))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def to_bytes(size: str) -> int:
    """Convert a size such as ``512M`` to bytes."""
    return int(size[:-1]) * _UNITS[size[-1]]


def describe_disk(disk: Path) -> dict[str, Any]:
    """The output of ``qemu-img info`` for a disk image.

    Raises:
        EphemeralError: It is not a disk image, or is damaged.
    """
    found: dict[str, Any] = json.loads(run_img("info", "--output=json", "-U", str(disk)))
    return found


def create_overlay(
    backing: Path, file: Path, size: str | None = None, *, backing_format: str = "qcow2"
) -> None:
    """Create an overlay: a disk that reads from a backing disk, and stores all writes itself.

    Args:
        backing: The backing disk, which is never written to.
        file: The new disk.
        size: The new disk's size, such as ``10G``, if larger than the backing disk's.
        backing_format: The format of the backing disk.
    """
    _run(overlay_argv(backing, file, size, backing_format=backing_format))


def overlay_argv(
    backing: Path, file: Path, size: str | None = None, *, backing_format: str = "qcow2"
) -> list[str]:
    """The command of ``create_overlay``."""
    sizes = [] if size is None else [str(to_bytes(size))]
    wanted = ["-q", "-f", "qcow2", "-F", backing_format, "-b", str(backing), str(file), *sizes]
    return [find(IMG), "create", *wanted]


def compress(disk: Path, file: Path) -> None:
    """Write a disk, with its backing disks, to one compressed qcow2 file."""
    options = ["-c", "-o", "compression_type=zstd", "-m", "4"]
    run_img("convert", "-q", "-O", "qcow2", *options, str(disk), str(file))


def run_img(*argv: str) -> str:
    """Run ``qemu-img``; return its output.

    Raises:
        EphemeralError: It failed; the message has the reason.
    """
    return _run([find(IMG), *argv])


def _run(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EphemeralError(f"qemu-img {argv[1]} failed: {done.stderr.strip()}")
    return done.stdout
