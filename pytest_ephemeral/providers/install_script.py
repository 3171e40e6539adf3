"""Run an install script with the interpreter in its first line; an error ends a shell script."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

from pytest_ephemeral.errors import ConfigurationError

_SHELLS: Final = frozenset({"sh", "bash", "dash", "ash", "ksh", "zsh"})


def command(content: bytes, path: str) -> list[str]:
    """The command that runs a script, whether or not it has the executable bit.

    A shell gets ``-e``, so that a command that fails ends the script. To continue after errors, a
    script has ``set +e``, or ``+e`` in its first line.

    Args:
        content: The content of the script.
        path: The path of the script where it runs.

    Raises:
        ConfigurationError: Its first line ends in CRLF, as on Windows.
    """
    first, _, _ = content.partition(b"\n")
    if first.startswith(b"\x7fELF"):
        return [path]
    if first.endswith(b"\r"):
        raise ConfigurationError(
            f"the install script {Path(path).name} has Windows line endings (CRLF), which the "
            "interpreter takes for a part of each command: convert it, for example with dos2unix, "
            "and keep it so with `*.sh text eol=lf` in .gitattributes"
        )
    if not first.startswith(b"#!"):
        return ["/bin/sh", "-e", path]
    words = first[2:].decode(errors="replace").split()
    if not words:
        return ["/bin/sh", "-e", path]
    if Path(words[0]).name == "env" and "-S" not in words and len(words) > 2:
        words = [words[0], " ".join(words[1:])]  # as the kernel does
    shell = Path(words[1 if Path(words[0]).name == "env" and len(words) > 1 else 0]).name
    if Path(words[0]).name == "env" and words[1:2] == ["-S"]:
        shell = Path(words[2]).name if len(words) > 2 else ""
        words = [words[0], *words[2:]]
    ignores_errors = any(word.startswith("+") and "e" in word for word in words[1:])
    if shell in _SHELLS and not ignores_errors:
        words.append("-e")
    return [*words, path]


def python_commands(version: str, folder: str, image: str) -> list[str]:
    """Shell commands that make ``python`` and ``python3`` one version, or exit with an error.

    Args:
        version: The version, such as ``3.13``: ``python3.13`` must be on ``PATH``.
        folder: The folder for the two programs, already quoted for the shell.
        image: The image's name, for the message.
    """
    missing = (
        f"images.{image}.python: there is no python{version} on PATH in the base: install it "
        "there, take a base that has it, or remove `python` to use any"
    )
    return [
        f"python=$(command -v python{version}) || {{ echo {shlex.quote(missing)} >&2; exit 1; }}",
        f"mkdir -p {folder}",
        # Scripts instead of links: a virtual environment made by a link would need this folder.
        "for name in python python3; do",
        f'printf \'#!/bin/sh\\nexec "%s" "$@"\\n\' "$python" >{folder}/$name',
        f"chmod 755 {folder}/$name",
        "done",
        f"export PATH={folder}:$PATH",
    ]
