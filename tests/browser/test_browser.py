"""A real browser finds the environment by itself: Playwright's plugin, and Debian's Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).with_name("suite")
SHOP = Path(__file__).parents[2] / "examples" / "shop"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The example, with its artifact built, in a folder of its own."""
    folder = tmp_path / "shop"
    shutil.copytree(SHOP, folder, ignore=shutil.ignore_patterns("dist", ".ephemeral", "tests"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    where = ["--no-deps", "--wheel-dir", "dist", "."]
    subprocess.run([*command, *where], cwd=folder, check=True, timeout=120)
    shutil.copytree(SUITE, folder / "browser")
    return folder


@pytest.mark.skipif(CHROMIUM is None, reason="without Chromium: apt-get install chromium")
@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_tea_is_bought_with_a_browser(shop: Path, tmp_path: Path, workers: tuple[str, ...]) -> None:
    """Nobody says where the shop is: it is where pytest-base-url's ``base_url`` says it is."""
    variables = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--ephemeral-env",
            "-p",
            "no:randomly",
            *workers,
            "browser",
        ],
        cwd=shop,
        env={
            **variables,
            "CHROMIUM": CHROMIUM or "",
            "SHOP_KEY": "of-this-test-alone",
            "PYTEST_EPHEMERAL_STATE": str(tmp_path / "state"),
            "NO_PROXY": "*",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
    assert "destroyed" in done.stdout
