"""Find the configuration file for a folder or for a selection of tests.

pytest and the command line have one rule: the nearest ``ephemeral.toml``, or ``pyproject.toml``
with our table, in the starting folder or a parent folder. The starting folder is the common folder
of the command line's arguments, or else the current folder.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

FILE_NAME: Final = "ephemeral.toml"
TOOL: Final = "pytest-ephemeral"

#: The depth to which folders are searched below the current one, for an error's message.
_DEPTH: Final = 4
#: How many files that message names at most.
_NAMED: Final = 3


def find(start: Path) -> Path | None:
    """The nearest configuration file in a folder or its parents; None if there is none.

    Args:
        start: The folder. In one folder, ephemeral.toml has precedence over pyproject.toml.
    """
    start = start.absolute()
    for folder in (start, *start.parents):
        if _exists(folder / FILE_NAME):
            return folder / FILE_NAME
        if has_table(folder / "pyproject.toml"):
            return folder / "pyproject.toml"
    return None


def common_folder(arguments: Iterable[str], current: Path) -> Path:
    """The folder at which the search starts for a selection of tests.

    Args:
        arguments: The arguments of pytest: files, folders and node ids, relative to the current
            folder. Paths that do not exist are ignored, such as a module's name (``--pyargs``).
        current: The current folder, which is the result if no argument is a path.
    """
    folders = []
    for argument in arguments:
        path = Path(os.path.normpath(current / argument.partition("::")[0]))
        if path.exists():
            folders.append(path if path.is_dir() else path.parent)
    return Path(os.path.commonpath(folders)) if folders else current


def below(start: Path) -> list[Path]:
    """Up to three configuration files below a folder, for the error that none was found."""
    found: list[Path] = []
    for file in _walk(start, _DEPTH):
        found.append(file)
        if len(found) == _NAMED:
            break
    return found


def has_table(path: Path) -> bool:
    """Whether a pyproject.toml has our table; also true if it seems so but is not valid TOML."""
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
