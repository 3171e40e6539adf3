"""Virtual machines for tests: a base of Debian's packages, and an image of it with an application.

Under emulation a boot takes many seconds, so there is one image for all tests of a process.
"""

from __future__ import annotations

import importlib.resources
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
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


#: What the shop of the examples is made of, and this project's tests have installed.
_SHOP_NEEDS = (
    *("flask", "werkzeug", "jinja2", "markupsafe", "itsdangerous", "click", "blinker"),
    "waitress",
)


def _write_shop(site: Path) -> None:
    """Write the shop and what it needs, compiled: no guest need fetch or compile anything."""
    source = SCRIPT.parents[1] / "examples" / "shop"
    wheel = ["wheel", "--quiet", "--no-deps", "--wheel-dir", str(site.parent), str(source)]
    subprocess.run([sys.executable, "-m", "pip", *wheel], check=True)
    with zipfile.ZipFile(next(site.parent.glob("shop-*.whl"))) as packed:
        packed.extractall(site)
    for name in _SHOP_NEEDS:
        folder = Path(str(importlib.resources.files(name)))
        shutil.copytree(folder, site / name, ignore=shutil.ignore_patterns("__pycache__"))
        for known in folder.parent.glob(f"{name}-*.dist-info"):
            shutil.copytree(known, site / known.name)
    hashed = ["--invalidation-mode", "unchecked-hash", str(site)]
    subprocess.run([sys.executable, "-m", "compileall", "-q", *hashed], check=True)


@cache
def bake_application() -> Image:
    """The image of that recipe, with the shop in it: baked and verified, once in this process."""
    root = Path(_folder().name)
    _write_shop(root / "site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_EPHEMERAL_STATE", str(root / "machine"))
        patch.setenv("PYTEST_EPHEMERAL_PREFIX_ROOT", str(root / "trees"))
        (root / "trees").mkdir(mode=0o700)
        launch = (
            "#!/bin/sh\nPYTHONPATH=/opt/pytest-ephemeral/site exec python3 -c "
            "'from shop.cli import main; main()' \"$@\"\n"
        )
        install = [
            *(recipe().install or []),
            'cp -r site "$PREFIX" && mkdir "$PREFIX/bin"',
            f'printf %s {shlex.quote(launch)} >"$PREFIX/bin/shop" && chmod +x "$PREFIX/bin/shop"',
        ]
        return bake(recipe(install=install, files=["site"]), root)


def as_it_is(image: Image) -> dict[str, str]:
    """The keys of a recipe that takes a baked image as it is."""
    content = Content.at(Path(image.reference))
    return {
        "reference": str(content.disk),
        "kernel": str(content.kernel),
        "initrd": str(content.initrd),
        "append": content.append,
    }
