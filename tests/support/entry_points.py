"""Entry points of packages that are not installed, found on PYTHONPATH."""

from __future__ import annotations

from pathlib import Path


def register(folder: Path, group: str, entry: str) -> None:
    """Write the metadata that pip writes for a package with one entry point.

    Args:
        folder: The folder for the metadata, which must be on PYTHONPATH. It is created.
        group: The group, without ``pytest_ephemeral.``.
        entry: The entry point, ``name = module:object``.
    """
    about = folder / "third_party-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[pytest_ephemeral.{group}]\n{entry}\n")
