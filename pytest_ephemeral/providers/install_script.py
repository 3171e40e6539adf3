"""How an install script is run: by the interpreter it names, ending at the first failing line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

from pytest_ephemeral.errors import ConfigurationError

_SHELLS: Final = frozenset({"sh", "bash", "dash", "ash", "ksh", "zsh"})


def command(content: bytes, path: str) -> list[str]:
    """The command that runs a script, whether or not it has the executable bit.

    A shell gets ``-e``, so that a line that fails ends the script. A script that wants to go on
    has ``set +e`` in it, or ``+e`` in its first line.

    Args:
        content: The script.
        path: Where it is when it runs.

    Raises:
        ConfigurationError: Its first line ends as on Windows, which no interpreter understands.
    """
    first, _, _ = content.partition(b"\n")
    if first.startswith(b"\x7fELF"):
        return [path]
    if first.endswith(b"\r"):
        raise ConfigurationError(
            f"the install script {Path(path).name} has Windows line ends (CRLF), which the "
            "interpreter takes for a part of each command: convert it, for example with dos2unix, "
            "and keep it so with `*.sh text eol=lf` in .gitattributes"
        )
    if not first.startswith(b"#!"):
        return ["/bin/sh", "-e", path]
    words = first[2:].decode(errors="replace").split()
    if not words:
        return ["/bin/sh", "-e", path]
    if Path(words[0]).name == "env" and "-S" not in words and len(words) > 2:
        words = [words[0], " ".join(words[1:])]  # the kernel gives one argument
    shell = Path(words[1 if Path(words[0]).name == "env" and len(words) > 1 else 0]).name
    if Path(words[0]).name == "env" and words[1:2] == ["-S"]:
        shell = Path(words[2]).name if len(words) > 2 else ""
        words = [words[0], *words[2:]]
    says_otherwise = any(word.startswith("+") and "e" in word for word in words[1:])
    if shell in _SHELLS and not says_otherwise:
        words.append("-e")
    return [*words, path]


def python_commands(version: str, folder: str, image: str) -> list[str]:
    """The shell commands that make ``python`` and ``python3`` be one version, or end the shell.

    Args:
        version: Such as ``3.13``; a ``python3.13`` must be on ``PATH`` where the script runs.
        folder: Where the two programs are put; shell quoting is the caller's.
        image: The image's name, for the message.
    """
    missing = (
        f"images.{image}.python: there is no python{version} on PATH in the base: install it "
        "there, take a base that has it, or remove `python` to use any"
    )
    return [
        f"python=$(command -v python{version}) || {{ echo {shlex.quote(missing)} >&2; exit 1; }}",
        f"mkdir -p {folder}",
        # No links: a virtual environment made through one would refer to this folder.
        "for name in python python3; do",
        f'printf \'#!/bin/sh\\nexec "%s" "$@"\\n\' "$python" >{folder}/$name',
        f"chmod 755 {folder}/$name",
        "done",
        f"export PATH={folder}:$PATH",
    ]
