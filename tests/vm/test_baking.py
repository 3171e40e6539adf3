"""Baking disks: the content of a sealed disk, and the errors of failed bakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_ephemeral import providers
from pytest_ephemeral.errors import BakeError
from pytest_ephemeral.providers.protocol import BakeJob
from pytest_ephemeral.providers.qemu import baking
from pytest_ephemeral.providers.qemu.content import Content
from pytest_ephemeral.testing.bench import bake
from support import lacks, vm
from support.waiting import eventually

BAKER = """\
import sys
from pathlib import Path
from pytest_ephemeral.testing.bench import bake
from support import vm
bake(vm.recipe(), Path(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a bake, with all its state."""
    if why := vm.unavailable():
        lacks.skip_without("QEMU", why)
    (tmp_path / "trees").mkdir(mode=0o700)
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "machine"))
    monkeypatch.setenv("PYTEST_EPHEMERAL_PREFIX_ROOT", str(tmp_path / "trees"))
    return tmp_path


def test_a_sealed_disk_has_nothing_of_the_machine_that_made_it(root: Path) -> None:
    """The compressed disk has no machine-id or cloud-init state. It is read without booting."""
    disk = Content.at(Path(vm.bake_application().reference)).disk
    assert disk.stat().st_mode & 0o222 == 0
    checked = subprocess.run(
        ["qemu-img", "check", "--output=json", disk], capture_output=True, text=True, check=True
    )
    told = json.loads(checked.stdout)
    assert told["compressed-clusters"] > 0.9 * told["allocated-clusters"]
    raw = root / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", disk, raw], check=True)

    def look(command: str) -> str:
        argv = ["debugfs", "-R", command, raw]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        return done.stdout + done.stderr.partition("\n")[2]

    assert look("cat /etc/machine-id") == ""
    assert "File not found" in look("ls -l /var/lib/cloud/instance")
    assert "ThreadingHTTPServer" in look("cat /opt/pytest-ephemeral/application.py")
    assert "File not found" in look("ls -l /run/pytest-ephemeral")


def test_a_failing_install_script_is_reported_and_leaves_nothing(root: Path) -> None:
    """The error has its status and last lines, which show that it got its artifact and files."""
    artifact = root / "shop-1.txt"
    artifact.write_text("the artifact\n" * 1000)
    (root / "extra.txt").write_text("an extra file\n")
    install = ["wc -l <$ARTIFACT; cat extra.txt; python3 -V", "echo now >&2; exit 7"]
    job = BakeJob(
        recipe=vm.recipe(install=install, files=["extra.txt"]),
        key="sha256:" + "7" * 64,
        root=root,
        artifact=artifact,
        log=root / "bake.log",
        say=lambda _: None,
    )
    baker: Any = providers.load("qemu")
    with baker.exclusive(job.key, "baking", print), pytest.raises(BakeError) as caught:
        baker.bake(job)
    message = str(caught.value)
    assert "its install script failed: it exited with 7" in message
    for line in ("1000", "an extra file", "Python 3", "now"):
        assert f"    {line}" in message
    baker.discard(job)
    assert list((root / "machine" / "machines").iterdir()) == []
    assert [path.suffix for path in (root / "trees").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": None, "initrd": None}, "its disk has no boot loader"),
        ({"initrd": None}, "its kernel panicked"),
    ],
    ids=["loader", "panic"],
)
def test_a_base_that_does_not_boot_is_reported_with_its_console(
    root: Path, changes: dict[str, Any], message: str
) -> None:
    """The error contains the last lines of its console."""
    with pytest.raises(BakeError, match=message) as caught:
        bake(vm.recipe(**changes), root)
    sign = "No bootable device" if "kernel" in changes else "Unable to mount root fs"
    assert sign in str(caught.value)


def test_disabled_cloud_init_is_reported(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is read through the guest agent, instead of waiting for the timeout."""
    monkeypatch.setattr(baking, "_ASK", 3.0)
    # Only the units that the agent needs are started.
    unit = "systemd.unit=qemu-guest-agent.service"
    recipe = vm.recipe(append=f"{vm.APPEND} cloud-init=disabled {unit}")
    with pytest.raises(BakeError, match="cloud-init did not run the user data") as caught:
        bake(recipe, root)
    assert "status: disabled" in str(caught.value)


@pytest.fixture
def baker(root: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that bakes."""
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(
        [sys.executable, "-c", BAKER, root], env={**os.environ, "PYTHONPATH": path}
    ) as process:
        yield process
        process.kill()


def test_a_killed_bake_leaves_no_qemu_and_no_folder(
    root: Path, baker: subprocess.Popen[bytes]
) -> None:
    """The bake gets SIGKILL while its machine boots."""
    machines = root / "machine" / "machines"
    assert eventually(lambda: bool(qemu_processes(machines)), 60)
    baker.send_signal(signal.SIGKILL)
    assert eventually(lambda: not qemu_processes(machines) and not list(machines.iterdir()), 10)


def qemu_processes(machines: Path) -> list[str]:
    """List the QEMU processes in a folder of machines, from the process table."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name, where = (process / "comm").read_text(), (process / "cwd").readlink()
        except OSError:
            continue
        if name.startswith("qemu-system") and machines in where.parents:
            found.append(process.name)
    return found


def test_another_kernel_is_another_image(root: Path) -> None:
    """The kernel is an input of the image's key, besides the base."""
    provider: Any = providers.load("qemu")
    known = vm.recipe()
    (root / "kernel").write_bytes(b"another")
    other = msgspec.structs.replace(known, kernel=str(root / "kernel"))
    one, two = provider.resolve(known, root), provider.resolve(other, root)
    assert one["base"] == two["base"]
    assert one["kernel"] != two["kernel"]
