"""Virtual machines: boot, freeze, resume and rollback, and their failures."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_ephemeral import models, providers
from pytest_ephemeral.models import Environment, Image
from pytest_ephemeral.providers.protocol import COLD_BOOT, RESUMED, SEEDED, TO_FREEZE, Order
from pytest_ephemeral.providers.qemu import programs
from pytest_ephemeral.providers.qemu.memory import Memory
from pytest_ephemeral.providers.qemu.tables import QemuTemplate
from pytest_ephemeral.testing.bench import get, make_order
from support import processes, vm
from support.waiting import eventually

CONFIGURATION = """\
[images.app]
provider = "qemu"
reference = "{reference}"
kernel = "{kernel}"
initrd = "{initrd}"
append = "{append}"

[templates.machine]
image = "app"
command = 'exec python3 "$PREFIX/application.py" "$HOST" "$PORT"'
memory = "{memory}"
port = 18479
ready = {{ http = "/", timeout = "10m" }}
seed = 'echo seeded >>"$STATE/seeds"'
warm = true
"""

SUITE = """\
import json, os, urllib.request

def test_it_answers_and_is_seeded_once(ephemeral_env):
    assert urllib.request.urlopen(ephemeral_env.url).read() == b"hello"
    assert ephemeral_env.run(["sh", "-c", "cat $STATE/seeds"]).stdout == "seeded\\n"
    ask = "echo $PYTEST_EPHEMERAL_ENVIRONMENT; cat /etc/machine-id"
    told = ephemeral_env.run(["sh", "-c", ask])
    id, machine_id = told.stdout.split()
    assert id == ephemeral_env.id
    with open(os.environ["TOLD"], "a") as file:
        file.write(json.dumps([id, machine_id]) + "\\n")
"""


ROLLBACK = """\
import pytest

@pytest.mark.ephemeral_env(rollback="each")
@pytest.mark.parametrize("number", [1, 2, 3])
def test_it_is_as_it_was(ephemeral_env, number):
    spoil = "cat $STATE/seeds; ls /run/spoilt; echo spoilt >>$STATE/seeds; touch /run/spoilt"
    assert ephemeral_env.run(["sh", "-c", spoil]).stdout == "seeded\\n"
"""


class Project:
    """A folder with a configuration and a suite, and a state directory of its own."""

    def __init__(self, folder: Path, image: Image) -> None:
        self.folder, self.image = folder, image
        self.told = folder / "told"
        keys = vm.reference_keys(image)
        text = CONFIGURATION.format(memory=vm.MEMORY, **keys)
        (folder / "ephemeral.toml").write_text(text)
        (folder / "test_machine.py").write_text(SUITE)

    def run(self, *argv: str | Path) -> str:
        """Run a program that must succeed; return its output."""
        environ = {**os.environ, "TOLD": str(self.told)}
        done = processes.run(*argv, folder=self.folder, environ=environ)
        return done.stdout + done.stderr

    def run_pytest(self, *argv: str) -> str:
        """Run pytest, which must pass; return its output."""
        options = ["-q", "-p", "no:cacheprovider", "--ephemeral-env"]
        return self.run(sys.executable, "-m", "pytest", *options, *argv)

    def test(self) -> tuple[str, dict[str, Any]]:
        """Run the suite; return its output and its environment in the report."""
        report = ["--ephemeral-report", "report.json"]
        printed = self.run_pytest(*report, "test_machine.py")
        (environment,) = json.loads((self.folder / "report.json").read_text())["environments"]
        return printed, environment

    def order(self, **changes: Any) -> Order:
        """Return an order of the template, as the lifecycle makes it."""
        from pytest_ephemeral.config import load

        template = load(self.folder / "ephemeral.toml").template("machine")
        return make_order(msgspec.structs.replace(template, **changes), self.taken)

    @property
    def taken(self) -> Image:
        """The image in the project's catalog."""
        (record,) = (self.folder / ".ephemeral" / "catalog" / "app").glob("*.json")
        return models.decode(record.read_bytes(), Image)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """One project for all tests; its first machine boots and is frozen."""
    with vm.own_folder(tmp_path_factory, "machines") as (folder, _):
        made = Project(folder, vm.bake_application())
        made.first = made.test()
        yield made


@pytest.fixture
def provider() -> Any:
    """The qemu provider."""
    return providers.load("qemu")


@pytest.fixture
def resumed(project: Project, provider: Any) -> Iterator[tuple[Order, Environment]]:
    """A machine that is resumed from the frozen memory, with its order."""
    order = project.order()
    try:
        environment = provider.launch(order)
        yield msgspec.structs.replace(order, environment=environment), environment
    finally:
        provider.destroy(order.environment)


def test_the_second_machine_resumes_from_memory(project: Project) -> None:
    """The suite runs twice. The second machine has its own identity, and is not seeded again."""
    printed, booted = project.first
    assert "not resumed from memory: no memory of it is frozen yet" in printed
    printed, resumed = project.test()
    assert "resumed from memory" not in printed
    assert "seed" not in resumed["seconds"]
    seconds = [sum(one["seconds"].values()) for one in (booted, resumed)]
    assert seconds[1] < seconds[0] / 4
    told = [json.loads(line) for line in project.told.read_text().splitlines()]
    (one, machine), (other, another) = told[:2]
    assert one != other
    assert machine != another
    machines = list((project.folder / "machine" / "machines").iterdir())
    assert machines == []


def test_each_test_gets_the_baseline(project: Project) -> None:
    """With the marker, each test changes memory and disk, and the next one sees no change."""
    file = project.folder / "test_rollback.py"
    file.write_text(ROLLBACK)
    assert "3 passed" in project.run_pytest(file.name)


def test_two_machines_of_one_memory_differ(project: Project) -> None:
    """They differ in all that ``images vet`` compares."""
    printed = project.run(processes.PROGRAM, "images", "vet", "app")
    for what in ("random numbers", "UUIDs", "machine-id"):
        assert f"machine: ok   {what}: differ" in printed
    assert printed.count("machine: ok   clock of machine-") == 2


def test_a_rollback_restores_memory_and_disk(
    resumed: tuple[Order, Environment], provider: Any
) -> None:
    """It works repeatedly, at the same address, and also for a machine that has exited."""
    order, environment = resumed
    assert SEEDED in environment.handle
    order = msgspec.structs.replace(order, environment=provider.take_baseline(order))
    spoil = "rm $STATE/seeds; echo spoilt >/root/disk; echo spoilt >/run/memory; sync"
    ask = ["sh", "-c", "cat $STATE/seeds; ls /root/disk /run/memory 2>/dev/null"]
    for _ in range(2):
        assert provider.run(environment, ["sh", "-c", spoil], timeout=60).returncode == 0
        back = provider.roll_back(order)
        assert back.url == environment.url
        assert get(back) == "hello"
        assert provider.run(back, ask, timeout=60).stdout == "seeded\n"
    with suppress(OSError):
        get(environment, "/exit/3")
    assert eventually(lambda: provider.status(environment).state == "exited", 60)
    provider.roll_back(order)
    assert provider.status(environment).state == "running"
    assert get(environment) == "hello"


def test_machines_share_the_memory_that_they_have_not_written(
    resumed: tuple[Order, Environment], project: Project
) -> None:
    """Unwritten pages are those of the memory file, which all machines share and none changes."""
    _, environment = resumed
    assert get(environment) == "hello"
    (ram,) = (project.folder / "machine" / "memory").glob("*/ram")
    maps = [path for path in Path("/proc").glob("[0-9]*/smaps") if str(ram) in _read(path)]
    text = _read(maps[0]).partition(str(ram))[2]
    private = next(line for line in text.splitlines() if line.startswith("Private_Dirty"))
    assert int(private.split()[1]) < 96 << 10  # KiB, of 256 MiB
    assert Memory(ram.parent).read() is not None
    Memory(ram.parent).require_usable()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def test_a_machine_with_changed_memory_boots_instead(project: Project, provider: Any) -> None:
    """The reason is recorded, and the memory is removed, to be frozen again."""
    (memory,) = (project.folder / "machine" / "memory").glob("[0-9a-f]*")
    kept = memory.with_name(".kept")
    shutil.copytree(memory, kept)
    order = project.order()
    try:
        with (memory / "state").open("r+b") as state:
            state.write(b"spoilt")
        environment = provider.launch(order)
        assert "state has changed since it was frozen" in environment.handle[COLD_BOOT]
        assert TO_FREEZE in environment.handle
        assert not memory.exists()
        assert provider.status(environment).state == "running"
    finally:
        provider.destroy(order.environment)
        kept.rename(memory)


def test_a_broken_memory_state_with_a_valid_seal_boots_instead(
    project: Project, provider: Any
) -> None:
    """QEMU refuses it. The same machine then boots, under the same guard."""
    (memory,) = (project.folder / "machine" / "memory").glob("[0-9a-f]*")
    kept = memory.with_name(".kept")
    shutil.copytree(memory, kept)
    order = project.order()
    try:
        (memory / "state").write_bytes(os.urandom(1 << 16))
        record = Memory(memory).read()
        assert record is not None
        Memory(memory).seal(record.fits, record.image)
        environment = provider.launch(order)
        assert "its memory could not be resumed" in environment.handle[COLD_BOOT]
        assert RESUMED not in environment.handle
        assert provider.status(environment).state == "running"
        assert eventually(lambda: "SeaBIOS" in _console(provider, environment), 120)
    finally:
        provider.destroy(order.environment)
        shutil.rmtree(memory, ignore_errors=True)
        kept.rename(memory)


def _console(provider: Any, environment: Environment) -> str:
    from pytest_ephemeral.providers.qemu import machines

    return machines.read_console(machines.MachineFolder.of_environment(environment))


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"cpu": "qemu64"}, "arguments and processor"), ({"env": {"A": "b"}}, "template")],
    ids=["processor", "template"],
)
def test_mismatched_memory_is_not_resumed(
    project: Project, provider: Any, changes: dict[str, Any], what: str
) -> None:
    """QEMU itself would load it without an error."""
    order = project.order(**changes)
    try:
        environment = provider.launch(order)
        assert f"was made with another {what}" in environment.handle[COLD_BOOT]
    finally:
        provider.destroy(order.environment)


def test_lack_of_space_prevents_freezing(
    project: Project, provider: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The space is checked first. The environment boots, and its record says why."""
    real = shutil.disk_usage
    order = project.order(warm="booted")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1 << 20))
    try:
        environment = provider.launch(order)
        assert "there is no space for 256 MiB of memory" in environment.handle[COLD_BOOT]
    finally:
        provider.destroy(order.environment)


def test_memory_of_another_qemu_is_not_resumed(
    project: Project, provider: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device states of another QEMU may be incompatible."""
    told = programs.version(programs.find(programs.SYSTEM))
    monkeypatch.setattr(programs, "version", lambda _: f"{told}, patched")
    order = project.order()
    assert isinstance(order.template, QemuTemplate)
    try:
        environment = provider.launch(order)
        assert environment.handle[COLD_BOOT].endswith("another qemu")
    finally:
        provider.destroy(order.environment)
