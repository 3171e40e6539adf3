"""The Python of install scripts, which is part of the key: virtual environments refer to it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pytest_ephemeral.errors import UnavailableError

_SECONDS: Final = 20


def find(wanted: str | None, variables: Mapping[str, str], where: str) -> Path | None:
    """The interpreter that is ``python3`` for install scripts; None if there is none.

    Args:
        wanted: The version, such as ``3.13``; None for any.
        variables: The script's variables; their ``PATH`` is searched.
        where: The key in the configuration, for messages.

    Raises:
        UnavailableError: The wanted one is not on ``PATH``.
    """
    name = "python3" if wanted is None else f"python{wanted}"
    found = shutil.which(name, path=variables.get("PATH"))
    if found is None and wanted is not None:
        raise UnavailableError(
            f"{where}: there is no {name} on PATH: install it, or remove `python` to use any"
        )
    return None if found is None else Path(found)


def search_path(wanted: str | None, work: Path, variables: Mapping[str, str], where: str) -> str:
    """A ``PATH`` on which ``python3`` is the wanted version.

    Args:
        wanted: See ``find``.
        work: A folder of the bake; wrapper scripts are written into it if needed.
        variables: See ``find``.
        where: See ``find``.
    """
    path = variables.get("PATH", os.defpath)
    found = find(wanted, variables, where)
    if wanted is None or found is None:
        return path
    folder = work / "bin"
    folder.mkdir()
    for name in ("python", "python3"):
        # A script instead of a link, as a virtual environment would refer to the link's folder.
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.quote(str(found))} "$@"\n')
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{path}"


def describe(python: Path) -> str:
    """The version and the folder of an interpreter, as virtual environments record them.

    They are read from a virtual environment's configuration, or from the program's name. If
    neither has them (a shim of pyenv, for example), the interpreter is run.
    """
    configuration = python.parent.parent / "pyvenv.cfg"
    try:
        settings = dict(
            re.findall(r"^(\w+)\s*=\s*(.+?)\s*$", configuration.read_text(), re.MULTILINE)
        )
    except OSError:
        settings = {}
    if "home" in settings:
        return f"{settings.get('version', settings.get('version_info', ''))} {settings['home']}"
    real = python.resolve()
    if version := re.fullmatch(r"python(3\.\d+)", real.name):
        return f"{version[1]} {real.parent}"
    code = "import sys; print('%d.%d' % sys.version_info[:2], sys.base_prefix)"
    try:
        done = subprocess.run(
            [python, "-c", code], capture_output=True, text=True, check=True, timeout=_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return f"unknown {real.parent}"
    return done.stdout.strip()
