"""The shop of the examples on a virtual machine: the same acceptance tests, another template."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import lacks, vm

SHOP = Path(__file__).parents[2] / "examples" / "shop"

#: They are about templates of their own.
OTHERS = ["test_prices_are_written_as_people_there_write_them", "first_day"]


def test_the_acceptance_tests_pass_on_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine for the session, one for a module, one for a class; each with the run's secret."""
    if why := vm.unavailable():
        lacks.skip_without("QEMU", why)
    (tmp_path / "trees").mkdir(mode=0o700)
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "machine"))
    monkeypatch.setenv("PYTEST_EPHEMERAL_PREFIX_ROOT", str(tmp_path / "trees"))
    folder = tmp_path / "shop"
    shutil.copytree(SHOP, folder, ignore=shutil.ignore_patterns("dist", ".ephemeral"))
    take_baked(folder / "ephemeral.toml")
    report = tmp_path / "report.json"
    argv = ["--ephemeral-env", "--ephemeral-template", "staging-vm", "-p", "no:cacheprovider"]
    argv += ["-k", " and ".join(f"not {name}" for name in OTHERS), f"--ephemeral-report={report}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *argv],
        cwd=folder,
        env={**os.environ, "SHOP_KEY": "letmein"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    environments = json.loads(report.read_bytes())["environments"]
    assert {one["template"] for one in environments} == {"staging-vm"}
    assert len(environments) == 3
    assert {one["state"] for one in environments} == {"destroyed"}
    assert "was booted" not in done.stdout + done.stderr
    assert list((tmp_path / "machine" / "machines").iterdir()) == []


def take_baked(file: Path) -> None:
    """Have the image of all tests in the place of the one that would be baked."""
    keys = "".join(f"{name} = {json.dumps(it)}\n" for name, it in taken().items())
    block = f'[images.shop-vm]\nprovider = "qemu"\n{keys}'
    text, count = re.subn(
        r"(?s)\[images\.shop-vm\]\n.*?\n\n", lambda _: block + "\n", file.read_text()
    )
    assert count == 1
    file.write_text(text.replace('memory = "512M"\nwarm', f'memory = "{vm.MEMORY}"\nwarm'))


def taken() -> dict[str, str]:
    """The keys of the image of all tests."""
    return vm.as_it_is(vm.bake_application())
