"""Copies of the shop of ``examples/``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Final

from support import processes

SHOP: Final = Path(__file__).parents[2] / "examples" / "shop"

#: Files that building and running the shop creates.
_GENERATED: Final = ("dist", ".ephemeral", "__pycache__", ".pytest_cache")


def copy_shop(folder: Path, *without: str) -> Path:
    """Copy the example without generated files.

    Args:
        folder: The new folder.
        without: Further names that are left out.

    Returns:
        The folder.
    """
    return shutil.copytree(SHOP, folder, ignore=shutil.ignore_patterns(*_GENERATED, *without))


def build_wheel(folder: Path) -> None:
    """Build the shop's wheel in ``dist``."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    processes.run(*pip, "--no-deps", "--wheel-dir", "dist", ".", folder=folder)
