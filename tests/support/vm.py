"""Virtual machines for tests: a base of Debian's packages, and an image of it with an application.

Under emulation a boot takes many seconds, so there is one image for all tests of a process.
"""

from __future__ import annotations

import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pytest_ephemeral.models import Image
from pytest_ephemeral.providers.qemu import programs
from pytest_ephemeral.providers.qemu.content import Content
from pytest_ephemeral.providers.qemu.tables import QemuRecipe
from pytest_ephemeral.testing import APPLICATION
from pytest_ephemeral.testing.bench import bake

SCRIPT = Path(__file__).parents[2] / ".ci" / "vm"

#: Of every machine: little, so that little is frozen.
MEMORY = "256M"

#: What its kernel is told: nothing is to be done that takes time to be emulated.
APPEND = (
    "root=/dev/vda rw console=ttyS0 quiet mitigations=off nokaslr audit=0 "
    "systemd.mask=cloud-init.service"
)


@cache
def unavailable() -> str:
    """Why there can be no machines here; empty when there can."""
    try:
        programs.find(programs.SYSTEM)
        programs.find(programs.IMG)
    except Exception as error:  # noqa: BLE001
        return f"QEMU: {error}"
    made = subprocess.run([SCRIPT], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"a base for QEMU: .ci/vm can't make one: {made.stderr.strip()[-300:]}"
    return ""


@cache
def base() -> dict[str, str]:
    """The keys of a recipe that is made from the base."""
    made = subprocess.run([SCRIPT], capture_output=True, text=True, check=True)
    folder = Path(made.stdout.strip())
    return {
        "base": str(folder / "disk.qcow2"),
        "kernel": str(folder / "kernel"),
        "initrd": str(folder / "initrd"),
        "append": APPEND,
    }


def recipe(**changes: Any) -> QemuRecipe:
    """A recipe that installs the conformance suite's application into the base."""
    content = APPLICATION.read_text()
    keys: dict[str, Any] = {
        "name": "app",
        "memory": MEMORY,
        "install": [f"cat > $PREFIX/application.py <<'END'\n{content}\nEND"],
        "verify": ['test -f "$PREFIX/application.py"'],
        **base(),
    }
    return QemuRecipe(**{**keys, **changes})


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="pytest-ephemeral-vm-", ignore_cleanup_errors=True)


@cache
def bake_application() -> Image:
    """The image of that recipe: baked and verified as any, once in this process."""
    root = Path(_folder().name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_EPHEMERAL_STATE", str(root / "machine"))
        patch.setenv("PYTEST_EPHEMERAL_PREFIX_ROOT", str(root / "trees"))
        (root / "trees").mkdir(mode=0o700)
        return bake(recipe(), root)


def as_it_is(image: Image) -> dict[str, str]:
    """The keys of a recipe that takes a baked image as it is."""
    content = Content.of(image)
    return {
        "reference": str(content.disk),
        "kernel": str(content.kernel),
        "initrd": str(content.initrd),
        "append": content.append,
    }
