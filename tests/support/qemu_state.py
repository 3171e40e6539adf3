"""A state folder for tests of the qemu provider."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_ephemeral.providers.qemu import (
    accelerators,
    programs,
)


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use a state folder of this test, and forget cached facts about the machine."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "machine"))
    accelerators.choose.cache_clear()
    programs.version.cache_clear()
    yield
    accelerators.choose.cache_clear()
    programs.version.cache_clear()
