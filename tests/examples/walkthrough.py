"""Write the files and run the commands of a page's code blocks.

A block whose first line is a comment with only a file name is that file. In a ``console`` block, a
line after ``$`` is a command, and the lines up to the next command are its expected output, in
this order; ``...`` allows other lines in between.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from support.plugin_project import without_plugins

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"^(?:#|<!--) (\S+\.\w+)(?: -->)?\n")


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file name in its first line, if there is one."""
        named = _FILE.match(self.text)
        return named[1] if named else None

    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """Its commands, each with its expected output lines."""
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, *printed = part.rstrip().splitlines()
            yield command, printed


def blocks(page: Path) -> list[Block]:
    """All blocks of a page."""
    return [Block(*found.groups()) for found in _FENCE.finditer(page.read_text())]


@dataclass
class Walk:
    """A reader who follows a page, starting in a folder.

    Attributes:
        folder: The current folder; ``cd`` changes it.
        machine: The folder for all state of a machine, for this walk alone.
        trees: The image root, if it is shared with other walks.
    """

    folder: Path
    machine: Path
    trees: Path | None = None
    seen: list[str] = field(default_factory=list)

    def follow(self, page: Path) -> None:
        """Write every file and run every command of a page, except ``make``."""
        for block in blocks(page):
            if block.file:
                (self.folder / block.file).write_text(block.text)
            elif block.language == "console":
                for command, printed in block.commands():
                    if not command.startswith("make "):
                        self.do(command, printed)

    def do(self, command: str, printed: list[str]) -> None:
        """Run one command, which must succeed and print its expected output."""
        self.seen.append(command)
        if command.startswith("cd "):
            self.folder /= command.removeprefix("cd ")
            return
        done = self.run(command)
        assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}"
        compare(printed, done.stdout, command)

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run one command in a shell, with this virtual environment activated."""
        return subprocess.run(
            ["sh", "-c", command],
            cwd=self.folder,
            env=self.variables(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
            check=False,
        )

    def variables(self) -> dict[str, str]:
        """The variables of a shell without settings for pytest, and with this walk's folders."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")
        }
        prefixes = self.trees or self.machine / "prefixes"
        prefixes.mkdir(mode=0o700, parents=True, exist_ok=True)
        return inherited | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTEST_EPHEMERAL_STATE": str(self.machine / "state"),
            "PYTEST_EPHEMERAL_PREFIX_ROOT": str(prefixes),
            "PYTEST_ADDOPTS": without_plugins(),
            "COLUMNS": "80",
            "NO_COLOR": "1",
        }

    def left(self) -> list[str]:
        """The environments that still have a folder."""
        environments = self.machine / "state" / "environments"
        return sorted(one.name for one in environments.glob("*"))


def compare(expected: list[str], output: str, command: str) -> None:
    """Compare the output of a command with its expected lines."""
    lines = [alike(line) for line in output.splitlines() if line.strip()]
    at, skipping = 0, False
    for line in expected:
        if line.strip() == "...":
            skipping = True
        elif line.strip():
            wanted = alike(line)
            found = lines.index(wanted, at) if wanted in lines[at:] else None
            assert found is not None, f"{command} did not print {line!r} but:\n{output}"
            assert skipping or found == at, f"{command} printed {lines[at]!r} before {line!r}"
            at, skipping = found + 1, False
    assert skipping or at == len(lines), f"{command} went on to print {lines[at:]}"


def alike(line: str) -> str:
    """A line with names in place of what differs between runs."""
    for pattern, name in (
        (r"https?://127\.\d+\.\d+\.\d+:\d+", "ADDRESS"),
        (r"\b(staging(?:-[a-z]+)?)-[a-z0-9]{6}\b", r"\1-ID"),
        (r"\b[0-9a-f]{8,64}\b", "DIGEST"),
        (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?", "TIME"),
        (r"\S+@\S+:\d+", "OWNER"),
        (r"(\d+(\.\d+)? ?(ms|s|m|h)\b ?)+", "SECONDS "),
        (r"={3,}", "="),
        (r"-{3,}", "-"),
        (r"\s+", " "),
    ):
        line = re.sub(pattern, name, line)
    return line.strip()
