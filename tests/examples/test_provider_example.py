"""The conformance suite, used by a third party's provider in one file, as in the docs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support import entry_points
from support.processes import run as run_program
from support.processes import with_variable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the example needs Linux")

EXAMPLE = Path(__file__).parents[2] / "examples" / "provider"

#: Faults that a provider could have, and the test of the suite that finds each.
FAULTS = {
    "_remove(_folder(environment.id))": "test_destroy_leaves_nothing",
    "text = mask(text": "test_secrets_are_masked_in_the_log",
    "_write(file, _read(file) | {labels.EXPIRES: expires})": "test_list_owned_returns_the_labels",
}


def run(folder: Path, *arguments: str) -> str:
    """Run the suite with the provider that is in a folder, registered as if installed."""
    entry_points.register(folder, "providers", "shell = shell_provider:ShellProvider")
    environ = os.environ | {"PYTHONPATH": str(folder), "HOME": str(folder / "home")}
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = run_program(*pytest_, *arguments, folder=folder, environ=environ, status=None)
    return done.stdout + done.stderr


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Path]:
    """A copy of the example; processes that a fault leaves are killed."""
    folder = shutil.copytree(EXAMPLE, tmp_path / "provider")
    yield folder
    for pid in processes(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes(folder: Path) -> list[int]:
    """All processes that have the folder's HOME."""
    return with_variable(f"HOME={folder / 'home'}")


def test_the_example_provider_passes_the_suite(provider: Path) -> None:
    """All tests pass, none is skipped, and nothing is left."""
    output = run(provider)
    assert re.search(r"^2\d passed in", output, re.MULTILINE), output
    assert list((provider / "home").rglob("labels.json")) == []
    assert processes(provider) == []


@pytest.mark.parametrize("fault", FAULTS, ids=list(FAULTS.values()))
def test_the_suite_finds_each_fault(provider: Path, fault: str) -> None:
    """The suite fails with each of these faults, so its tests can fail."""
    file = provider / "shell_provider.py"
    assert fault in file.read_text()
    without = "str(text" if fault.startswith("text") else "pass"
    file.write_text(file.read_text().replace(fault, without))
    output = run(provider, "-k", FAULTS[fault])
    assert f"{FAULTS[fault]}" in output
    assert "1 failed" in output, output
