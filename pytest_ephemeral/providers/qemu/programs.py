"""The programs of QEMU: where they are, and disk images made and looked at with them."""

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

#: Which package has which program, on Debian and its descendants, and with Homebrew.
_PACKAGES: Final = {SYSTEM: "qemu-system-x86", IMG: "qemu-utils"}

_UNITS: Final = {"M": 1 << 20, "G": 1 << 30}


def find(program: str) -> str:
    """The path of one of QEMU's programs.

    Raises:
        UnavailableError: It is not installed; names the package.
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
    """What a program says of its version, in its first line."""
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return told.stdout.partition("\n")[0].strip()


def release(program: str) -> tuple[int, int]:
    """A program's version as numbers; zeros where it does not tell."""
    told = re.search(r"version (\d+)\.(\d+)", version(program))
    return (int(told[1]), int(told[2])) if told else (0, 0)


def to_bytes(size: str) -> int:
    """A size such as ``512M`` in bytes."""
    return int(size[:-1]) * _UNITS[size[-1]]


def describe_disk(disk: Path) -> dict[str, Any]:
    """What ``qemu-img info`` tells of a disk image, by its own names.

    Raises:
        EphemeralError: It is no disk image, or a broken one.
    """
    told: dict[str, Any] = json.loads(run_img("info", "--output=json", "-U", str(disk)))
    return told


def create_overlay(
    backing: Path, file: Path, size: str | None = None, *, backing_format: str = "qcow2"
) -> None:
    """Make a disk that reads from another, and keeps what is written to it by itself.

    Args:
        backing: The other, which is never written to.
        file: The new one.
        size: Such as ``10G``, if more than the other's.
        backing_format: The other's.
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
    """Write a disk and all that it reads from into one compressed qcow2."""
    options = ["-c", "-o", "compression_type=zstd", "-m", "4"]
    run_img("convert", "-q", "-O", "qcow2", *options, str(disk), str(file))


def run_img(*argv: str) -> str:
    """Run ``qemu-img``; what it prints.

    Raises:
        EphemeralError: It failed; says why.
    """
    return _run([find(IMG), *argv])


def _run(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EphemeralError(f"qemu-img {argv[1]} failed: {done.stderr.strip()}")
    return done.stdout
