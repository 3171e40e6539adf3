"""Which Python an install script finds: it is in every virtual environment, so in the key."""

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
    """The interpreter that ``python3`` is to be while baking.

    Args:
        wanted: Such as ``3.13``; None for what is found.
        variables: What the script sees; its ``PATH`` is searched.
        where: The key's path, for the message.

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
    """The ``PATH`` on which ``python3`` is the wanted one.

    Args:
        wanted: As for ``find``.
        work: A folder of the bake; programs are put into it where one is wanted.
        variables: What the script sees.
        where: As for ``find``.
    """
    path = variables.get("PATH", os.defpath)
    found = find(wanted, variables, where)
    if wanted is None or found is None:
        return path
    folder = work / "bin"
    folder.mkdir()
    for name in ("python", "python3"):
        # No link: a virtual environment made through one would refer to this folder.
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.quote(str(found))} "$@"\n')
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{path}"


def describe(python: Path) -> str:
    """Version and folder of an interpreter, as it gets into virtual environments.

    It is read off a virtual environment's configuration or the program's name. Only where neither
    says it (a shim of pyenv, say), the interpreter itself is asked.
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
