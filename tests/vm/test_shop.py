"""The shop of the examples on a virtual machine: the same acceptance tests, another template."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from support import lacks, processes, vm
from support.shop import copy_shop

#: Tests that use templates of their own.
OTHERS = ["test_prices_are_written_as_people_there_write_them", "first_day"]


#: For the folder of the acceptance tests: each test changes the data that the next one reads.
ROLLBACK = """\
import pytest

@pytest.mark.ephemeral_env("staging-vm", rollback="each")
@pytest.mark.parametrize("number", [1, 2])
def test_the_shelf_is_full_again(ephemeral_env, manager, number):
    assert manager.delete(f"{ephemeral_env.url}api/products").json() == {"removed": 8}
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example in a folder of its own, with the image that all tests share."""
    if why := vm.unavailable():
        lacks.skip_without("QEMU", why)
    folder = copy_shop(tmp_path_factory.mktemp("example") / "shop")
    (folder.parent / "trees").mkdir(mode=0o700)
    use_baked_image(folder / "ephemeral.toml")
    vm.share_memory(folder.parent / "machine")
    return folder


def run(shop: Path, *argv: str) -> str:
    """Run pytest on the shop's machines, which must pass; return its output."""
    template = ["--ephemeral-env", "--ephemeral-template", "staging-vm", "-p", "no:cacheprovider"]
    environ = {
        **os.environ,
        "PYTEST_EPHEMERAL_STATE": str(shop.parent / "machine"),
        "PYTEST_EPHEMERAL_PREFIX_ROOT": str(shop.parent / "trees"),
        "SHOP_KEY": "letmein",
    }
    command = [sys.executable, "-m", "pytest", *template, *argv]
    done = processes.run(*command, folder=shop, environ=environ, timeout=500)
    return done.stdout + done.stderr


def test_the_acceptance_tests_pass_on_machines(shop: Path) -> None:
    """The session, a module and a class each have a machine, with the run's secret."""
    report = shop.parent / "report.json"
    others = " and ".join(f"not {name}" for name in OTHERS)
    printed = run(shop, "-k", others, f"--ephemeral-report={report}")
    environments = json.loads(report.read_bytes())["environments"]
    assert {one["template"] for one in environments} == {"staging-vm"}
    assert len(environments) == 3
    assert {one["state"] for one in environments} == {"destroyed"}
    assert "was booted" not in printed
    assert list((shop.parent / "machine" / "machines").iterdir()) == []


def test_the_shop_is_rolled_back(shop: Path) -> None:
    """This also works if the machine was resumed from memory frozen before the shop started."""
    file = shop / "tests" / "acceptance" / "test_shelf.py"
    file.write_text(ROLLBACK)
    try:
        assert "2 passed" in run(shop, str(file))
    finally:
        file.unlink()


def use_baked_image(file: Path) -> None:
    """Use the image that all tests share, instead of baking one."""
    keys = "".join(f"{name} = {json.dumps(it)}\n" for name, it in baked_image_keys().items())
    block = f'[images.shop-vm]\nprovider = "qemu"\n{keys}'
    text, count = re.subn(
        r"(?s)\[images\.shop-vm\]\n.*?\n\n", lambda _: block + "\n", file.read_text()
    )
    assert count == 1
    file.write_text(text.replace('memory = "512M"\nwarm', f'memory = "{vm.MEMORY}"\nwarm'))


def baked_image_keys() -> dict[str, str]:
    """Return the configuration keys of the image that all tests share."""
    return vm.reference_keys(vm.bake_application())
