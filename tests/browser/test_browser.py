"""A browser suite with an environment, Playwright's plugin and Debian's Chromium."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from support import processes
from support.shop import build_wheel, copy_shop

SUITE = Path(__file__).with_name("suite")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A copy of the shop with its wheel built, and the browser suite."""
    folder = copy_shop(tmp_path / "shop", "tests")
    build_wheel(folder)
    shutil.copytree(SUITE, folder / "browser")
    return folder


@pytest.mark.skipif(CHROMIUM is None, reason="without Chromium: apt-get install chromium")
@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_the_browser_suite_passes_in_chromium(
    shop: Path, tmp_path: Path, workers: tuple[str, ...]
) -> None:
    """The suite finds the shop only by ``base_url`` of pytest-base-url."""
    variables = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    variables |= {
        "CHROMIUM": CHROMIUM or "",
        "SHOP_KEY": "of-this-test-alone",
        "PYTEST_EPHEMERAL_STATE": str(tmp_path / "state"),
        "NO_PROXY": "*",
    }
    pytest_ = [sys.executable, "-m", "pytest", "--ephemeral-env", "-p", "no:randomly"]
    printed = processes.run(*pytest_, *workers, "browser", folder=shop, environ=variables).stdout
    assert "3 passed" in printed
    assert "destroyed" in printed
