"""Virtual machines for tests: a base of Debian packages, and an image with an application.

An emulated boot takes many seconds. So all tests share one image, and the frozen memory of a
machine. Both are cached until their sources change.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.resources
import os
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pytest_ephemeral import models, providers
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers.protocol import RESUMED
from pytest_ephemeral.providers.qemu import programs
from pytest_ephemeral.providers.qemu.content import Content
from pytest_ephemeral.providers.qemu.tables import QemuRecipe, QemuTemplate
from pytest_ephemeral.testing import APPLICATION
from pytest_ephemeral.testing.bench import bake, make_order
from support import lacks

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / ".ci" / "vm"

#: The memory of every machine: small, so that freezing is fast.
MEMORY = "256M"

#: Units of Debian that a machine for tests does not need.
_MASKED = (
    *("cloud-init.service", "kmod-static-nodes.service", "modprobe@configfs.service"),
    *("modprobe@fuse.service", "proc-sys-fs-binfmt_misc.automount", "sys-kernel-config.mount"),
    *("sys-fs-fuse-connections.mount", "systemd-journal-flush.service"),
    *("systemd-modules-load.service", "systemd-network-generator.service"),
    *("systemd-random-seed.service", "systemd-remount-fs.service", "systemd-sysctl.service"),
    *("systemd-sysusers.service", "systemd-tmpfiles-clean.timer"),
    *("systemd-tmpfiles-setup-dev.service", "systemd-update-utmp-runlevel.service"),
    *("systemd-update-utmp.service", "systemd-user-sessions.service"),
)

#: The kernel's command line, without things that take long under emulation.
APPEND = " ".join(
    [
        "root=/dev/vda rw console=ttyS0 quiet mitigations=off nokaslr audit=0 psi=0",
        "cgroup_disable=memory tsc=reliable no_timer_check rcupdate.rcu_expedited=1",
        *(f"systemd.mask={unit}" for unit in _MASKED),
    ]
)

#: The kernel's command line for benchmarks: with all of Debian's units.
WHOLE_APPEND = (
    "root=/dev/vda rw console=ttyS0 quiet mitigations=off nokaslr audit=0 "
    "systemd.mask=cloud-init.service"
)


@cache
def unavailable() -> str:
    """Why machines can't be run here, or empty."""
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
    """The keys of a recipe with the base."""
    made = subprocess.run([SCRIPT], capture_output=True, text=True, check=True)
    folder = Path(made.stdout.strip())
    return {
        "base": str(folder / "disk.qcow2"),
        "kernel": str(folder / "kernel"),
        "initrd": str(folder / "initrd"),
        "append": APPEND,
    }


@contextmanager
def own_folder(
    factory: pytest.TempPathFactory, name: str
) -> Iterator[tuple[Path, pytest.MonkeyPatch]]:
    """A folder with its own machine state; tests are skipped without QEMU."""
    if why := unavailable():
        lacks.skip_without("QEMU", why)
    folder = factory.mktemp(name)
    with _state_in(folder) as patch:
        yield folder, patch


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


#: The sources of the cached image; a change in them makes another image.
_SOURCES = ("pytest_ephemeral/providers", "pytest_ephemeral/testing", "examples/shop/src", ".ci/vm")

#: Seconds after which an unused image is removed.
_UNUSED = 2 * 86400.0


@cache
def _folder() -> Path:
    """The folder of the shared image and its frozen memory, which are made if they do not exist.

    Other processes wait meanwhile. A folder in use is not removed.
    """
    cache = Path(base()["base"]).parents[1]
    folder = cache / f"machines-{_digest()[:16]}"
    fcntl.flock(_lock(folder), fcntl.LOCK_EX)
    if not (folder / "whole").exists():
        _remove(folder)
        (folder / "trees").mkdir(mode=0o700, parents=True)
        with _state_in(folder):
            image = _bake(folder)
            (folder / "frozen").write_text(_freeze(folder, image))
            (folder / "image.json").write_bytes(models.encode(image))
        (folder / "whole").touch()
    os.utime(folder)
    fcntl.flock(_lock(folder), fcntl.LOCK_SH)
    for other in cache.glob("machines-*[0-9a-f]"):
        if other != folder and other.is_dir() and other.stat().st_mtime < time.time() - _UNUSED:
            with suppress(BlockingIOError):
                fcntl.flock(_lock(other), fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(other)
    return folder


@cache
def _lock(folder: Path) -> int:
    """The descriptor of a folder's lock, which stays open as long as this process lives."""
    return os.open(folder.with_name(f"{folder.name}.lock"), os.O_RDWR | os.O_CREAT)


def _remove(folder: Path) -> None:
    subprocess.run(["chmod", "-Rf", "u+w", folder], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def _digest() -> str:
    """The digest of all sources of the image."""
    found = hashlib.sha256(f"{programs.version(programs.find(programs.SYSTEM))}\n".encode())
    for source in (*_SOURCES, f"tests/support/{Path(__file__).name}"):
        top = ROOT / source
        for file in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if file.is_file() and file.suffix != ".pyc":
                found.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return found.hexdigest()


#: The image's name in every test: frozen memory is found by the name and the digest.
NAME = "shop-vm"

#: The dependencies of the shop in examples/, which are installed for this project's tests.
_SHOP_NEEDS = (
    *("flask", "werkzeug", "jinja2", "markupsafe", "itsdangerous", "click", "blinker"),
    "waitress",
)


def _write_shop(site: Path) -> None:
    """Write the compiled shop and its dependencies, so that guests need no download."""
    source = ROOT / "examples" / "shop"
    shutil.copytree(source / "src" / "shop", site / "shop")
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    known = site / f"shop-{project['version']}.dist-info" / "METADATA"
    known.parent.mkdir()
    known.write_text(f"Metadata-Version: 2.1\nName: shop\nVersion: {project['version']}\n")
    for name in _SHOP_NEEDS:
        folder = Path(str(importlib.resources.files(name)))
        shutil.copytree(folder, site / name, ignore=shutil.ignore_patterns("__pycache__"))
        for described in folder.parent.glob(f"{name}-*.dist-info"):
            shutil.copytree(described, site / described.name)
    hashed = ["--invalidation-mode", "unchecked-hash", str(site)]
    subprocess.run([sys.executable, "-m", "compileall", "-q", *hashed], check=True)


@cache
def bake_application() -> Image:
    """The shared image: baked and verified, with the application and the shop."""
    return models.decode((_folder() / "image.json").read_bytes(), Image)


def _bake(root: Path) -> Image:
    _write_shop(root / "site")
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


@contextmanager
def _state_in(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """Use a folder for the machine state, until the end of the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_EPHEMERAL_STATE", str(folder / "machine"))
        patch.setenv("PYTEST_EPHEMERAL_PREFIX_ROOT", str(folder / "trees"))
        yield patch


def _freeze(root: Path, baked: Image) -> str:
    """Freeze the memory of a machine of the image, before its application is started."""
    keys: dict[str, Any] = {"name": NAME, **reference_keys(baked)}
    image = bake(QemuRecipe(**keys), root)
    template = QemuTemplate(
        name="web", image=NAME, command="exec sleep 60", memory=MEMORY, port=1, warm="booted"
    )
    order = make_order(template, image, lifetime=900)  # it boots before it resumes
    provider: Any = providers.load("qemu")
    try:
        return str(provider.launch(order).handle[RESUMED])
    finally:
        provider.destroy(order.environment)


def share_memory(state: Path) -> None:
    """Copy the frozen memory, so that machines with ``warm = "booted"`` resume from it.

    Args:
        state: The state directory of these machines.
    """
    found = Path((_folder() / "frozen").read_text())
    shutil.copytree(found, state / "memory" / found.name, copy_function=_copy)
    with suppress(FileNotFoundError):  # there is no accelerator besides emulation
        shutil.copy(found.parents[1] / "qemu-accelerator.json", state)


def _copy(source: str, target: str) -> None:
    """Copy a sparse file with its times, by which it counts as unchanged."""
    subprocess.run(["cp", "--sparse=always", "--preserve=all", source, target], check=True)


def reference_keys(image: Image) -> dict[str, str]:
    """The keys of a recipe whose ``reference`` is a baked image."""
    content = Content.at(Path(image.reference))
    return {
        "reference": str(content.disk),
        "kernel": str(content.kernel),
        "initrd": str(content.initrd),
        "append": content.append,
    }
