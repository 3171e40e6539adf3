"""Which configuration file belongs to a folder or to a selection of tests.

One rule for pytest and the command line: the nearest ``ephemeral.toml``, or ``pyproject.toml`` with
our table, in the common folder of what was named on the command line (or else the current folder)
or a parent directory.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

FILE_NAME: Final = "ephemeral.toml"
TOOL: Final = "pytest-ephemeral"

#: Folders below the current one in which files are looked for, to name them in an error.
_DEPTH: Final = 4
_NAMED: Final = 3


def find(start: Path) -> Path | None:
    """The nearest configuration in a folder or its parents.

    Args:
        start: A folder. In the same folder, ephemeral.toml takes precedence over pyproject.toml.
    """
    start = start.absolute()
    for folder in (start, *start.parents):
        if _exists(folder / FILE_NAME):
            return folder / FILE_NAME
        if has_table(folder / "pyproject.toml"):
            return folder / "pyproject.toml"
    return None


def common_folder(arguments: Iterable[str], current: Path) -> Path:
    """The folder at which the search begins for a selection of tests.

    Args:
        arguments: pytest's: files, folders and node ids, relative to the current folder. What is
            not there (a module's name for ``--pyargs``, say) is left out.
        current: The current folder; the answer when nothing is left.
    """
    folders = []
    for argument in arguments:
        path = Path(os.path.normpath(current / argument.partition("::")[0]))
        if path.exists():
            folders.append(path if path.is_dir() else path.parent)
    return Path(os.path.commonpath(folders)) if folders else current


def below(start: Path) -> list[Path]:
    """Some configurations in the folders below one, for the error that there is none above."""
    found: list[Path] = []
    for file in _walk(start, _DEPTH):
        found.append(file)
        if len(found) == _NAMED:
            break
    return found


def has_table(path: Path) -> bool:
    """Whether a pyproject.toml has our table, or looks so but is broken and must be reported."""
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return False
    if TOOL not in text:
        return False
    try:
        tool = tomllib.loads(text).get("tool")
    except (ValueError, RecursionError):
        return f"[tool.{TOOL}" in text
    return isinstance(tool, dict) and isinstance(tool.get(TOOL), dict)


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name == FILE_NAME:
            yield folder / FILE_NAME
    for entry in entries:
        skipped = entry.name.startswith((".", "_")) or entry.name in {"node_modules", "venv"}
        if depth and not skipped and entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, depth - 1)


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except OSError:
        return False
    return True
