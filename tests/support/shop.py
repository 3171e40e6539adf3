"""The shop of ``examples/``, in a folder of its own."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Final

from support import processes

SHOP: Final = Path(__file__).parents[2] / "examples" / "shop"

#: What building and running it has made.
_GENERATED: Final = ("dist", ".ephemeral", "__pycache__", ".pytest_cache")


def copy_shop(folder: Path, *without: str) -> Path:
    """Copy the example as it stands.

    Args:
        folder: Where to; it is made.
        without: What is left out, besides what was generated.

    Returns:
        The folder.
    """
    return shutil.copytree(SHOP, folder, ignore=shutil.ignore_patterns(*_GENERATED, *without))


def build_wheel(folder: Path) -> None:
    """Build its artifact."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    processes.run(*pip, "--no-deps", "--wheel-dir", "dist", ".", folder=folder)
