"""Measure virtual machines, booted and resumed from memory: ``python -m benchmarks.machines``.

The image is the base image of the tests (``.ci/vm``) with the conformance suite's application. A
machine is ready at its first response over HTTP. Figures are medians, with the targets.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from pytest_ephemeral import providers
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers.protocol import RESUMED
from pytest_ephemeral.providers.qemu import accelerators
from pytest_ephemeral.providers.qemu.provider import QemuProvider
from pytest_ephemeral.providers.qemu.tables import QemuRecipe, QemuTemplate
from pytest_ephemeral.testing.bench import bake, get, make_order
from pytest_ephemeral.testing.waiting import until

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

#: The numbers of measured resumes and rollbacks.
RESUMES, ROLLBACKS = 9, 100

#: The number of test modules that have a machine of their own.
MODULES = 8

MODULE = """\
import time

def test_it_is_there(ephemeral_env_module):
    time.sleep(1)
"""

CONFIGURATION = """\
[images.app]
provider = "qemu"
{keys}
[templates.machine]
image = "app"
command = 'exec python3 "$PREFIX/application.py" "$HOST" "$PORT"'
port = 18481
ready = {{ http = "/", timeout = "10m" }}
warm = true
"""

#: Seconds to wait for a machine that boots.
PATIENCE = 600.0


def main() -> int:
    """Run all measurements, and print each figure."""
    vm: Any = import_module("support.vm")  # a helper of the tests
    if why := vm.unavailable():
        print(f"without {why}: nothing is measured")
        return 0
    taken = {**vm.reference_keys(vm.bake_application()), "append": vm.WHOLE_APPEND}
    with tempfile.TemporaryDirectory(prefix="machines-") as folder:
        os.environ["PYTEST_EPHEMERAL_STATE"] = folder
        image = bake(QemuRecipe(name="app", **taken), Path(folder))
        print(f"accelerator: {accelerators.choose()}; load: {os.getloadavg()[0]:.1f}")
        for memory in ("512M", "2G"):
            measure(image, memory)
        run_modules(Path(folder), taken)
    return 0


def measure(image: Image, memory: str) -> None:
    """Measure one size of memory: boot, resume and rollback."""
    provider = providers.load("qemu")
    assert isinstance(provider, QemuProvider)
    serve = 'exec python3 "$PREFIX/application.py" "$HOST" "$PORT"'
    template = QemuTemplate(
        name="bench", image="app", command=serve, port=18480, memory=memory, warm=True
    )
    cold = bring_up(provider, template, image, freeze=True)
    resumes = [bring_up(provider, template, image) for _ in range(RESUMES)]
    print(f"{memory}: booted to ready   {cold:7.2f} s")
    print(f"{memory}: resumed to ready  {median(resumes):7.3f} s  (at most 0.3)")
    print(f"{memory}: faster by         {cold / median(resumes):7.0f} x  (at least 60)")
    put_back(provider, template, image)


def bring_up(
    provider: QemuProvider, template: QemuTemplate, image: Image, *, freeze: bool = False
) -> float:
    """The seconds until a machine responds. The machine is destroyed afterwards."""
    order = make_order(template, image, lifetime=3600)
    started = time.perf_counter()
    try:
        environment = provider.launch(order)
        until(lambda: get(environment), within=PATIENCE)
        seconds = time.perf_counter() - started
        assert (RESUMED in environment.handle) != freeze, environment.handle
        if freeze:
            provider.freeze(msgspec.structs.replace(order, environment=environment))
    finally:
        provider.destroy(order.environment)
    return seconds


def put_back(provider: QemuProvider, template: QemuTemplate, image: Image) -> None:
    """Roll one machine back many times; print the time, and the growth of its resources."""
    order = make_order(template, image, lifetime=3600)
    try:
        environment = provider.launch(order)
        until(lambda: get(environment), within=PATIENCE)
        order = msgspec.structs.replace(order, environment=environment)
        order = msgspec.structs.replace(order, environment=provider.take_baseline(order))
        folder = Path(environment.handle["folder"])

        def once() -> float:
            started = time.perf_counter()
            until(lambda: get(provider.roll_back(order)))
            return time.perf_counter() - started

        once()
        before = census(folder)
        seconds = [once() for _ in range(ROLLBACKS)]
        after = census(folder)
    finally:
        provider.destroy(order.environment)
    print(f"{template.memory}: put back          {median(seconds):7.3f} s  (at most 0.3)")
    for what, here, then in zip(
        ("processes", "MiB resident", "MiB on disk"), before, after, strict=True
    ):
        print(f"{template.memory}: {what} before {ROLLBACKS} of them {here:.0f}, after {then:.0f}")


def run_modules(folder: Path, taken: Mapping[str, str]) -> None:
    """Measure a run of several modules, each with a new machine and one second of tests."""
    project = folder / "modules"
    project.mkdir()
    keys = "".join(f"{name} = {json.dumps(it)}\n" for name, it in taken.items())
    (project / "ephemeral.toml").write_text(CONFIGURATION.format(keys=keys))
    for number in range(MODULES):
        (project / f"test_{number}.py").write_text(MODULE)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    seconds = []
    for _ in range(3):  # the first one boots, and saves the memory
        started = time.perf_counter()
        subprocess.run(
            [*argv, "--ephemeral-env"], cwd=project, check=True, stdout=subprocess.DEVNULL
        )
        seconds.append(time.perf_counter() - started)
    print(f"{MODULES} modules, each a fresh machine and 1 s of tests: {min(seconds[1:]):.1f} s")


def census(folder: Path) -> tuple[float, float, float]:
    """The number of a machine's processes, their memory in MiB, and its files in MiB."""
    marker = f"PYTEST_EPHEMERAL_ENVIRONMENT={folder.name}".encode()
    pids = [path for path in Path("/proc").glob("[0-9]*") if marker in attempt(path / "environ")]
    pages = [int(attempt(path / "statm").split()[1]) for path in pids if attempt(path / "statm")]
    blocks = sum(path.lstat().st_blocks for path in folder.rglob("*"))
    return len(pids), sum(pages) * os.sysconf("SC_PAGE_SIZE") / (1 << 20), blocks / 2048


def attempt(file: Path) -> bytes:
    """The content of a process's file in /proc; empty if the process has ended."""
    read: Callable[[], bytes] = file.read_bytes
    try:
        return read()
    except OSError:
        return b""


if __name__ == "__main__":
    raise SystemExit(main())
