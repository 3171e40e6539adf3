"""Record the README's example in a terminal, as an animated SVG: ``python docs/images/cast.py``.

It runs the commands for real, with the files of the README, and keeps when each line appeared.
Pauses are shortened, so that a viewer does not wait as long as a first bake.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
ROWS, COLUMNS, LINE, CHARACTER = 24, 104, 18, 8.4
LONGEST_PAUSE, TYPING, HOLD = 0.6, 0.04, 5.0

#: A block of the README that is a file, with its language, name and content.
_BLOCK = re.compile(
    r"^```(\w+)\n(?:# |<!-- )(\S+\.\w+)(?: -->)?\n(.*?)^```$", re.MULTILINE | re.DOTALL
)

#: The commands; before the last one, the page is changed so that the test fails.
COMMANDS = [
    "pytest --ephemeral-env",
    "sed -i s/Welcome/Go away/ index.html",
    "pytest --ephemeral-env",
]


def record(folder: Path) -> list[tuple[float, str, bool]]:
    """Run the commands: when each line appeared in seconds, the line, and whether it is typed."""
    for language, name, text in _BLOCK.findall(README.read_text()):
        if language != "console":
            (folder / name).write_text(text)
    environment = os.environ | {
        "COLUMNS": str(COLUMNS),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTEST_ADDOPTS": "-p no:randomly -p no:cacheprovider --no-header",
    }
    frames, now = [], 0.5
    for command in COMMANDS:
        frames.append((now, f"$ {command}", True))
        now += len(command) * TYPING + 0.3
        argv = command.replace("s/Welcome/Go away/", "'s/Welcome/Go away/'")
        began = time.monotonic()
        with subprocess.Popen(
            ["sh", "-c", argv],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            for line in process.stdout or ():
                pause, began = time.monotonic() - began, time.monotonic()
                now += min(pause, LONGEST_PAUSE)
                frames += [(now, part, False) for part in _fold(line.rstrip("\n"))]
        now += 1.0
    return frames


def draw(frames: list[tuple[float, str, bool]]) -> str:
    """The SVG: every line fades in at its time, and the page scrolls when it is full."""
    total = frames[-1][0] + HOLD
    width, height = COLUMNS * CHARACTER + 32, ROWS * LINE + 32
    styles, lines = [], []
    for at, (when, text, typed) in enumerate(frames):
        share = when / total * 100
        styles.append(
            f"@keyframes l{at}{{0%,{share:.3f}%{{opacity:0}}{share + 0.01:.3f}%,100%{{opacity:1}}}}"
        )
        styles.append(f".l{at}{{animation:l{at} {total:.2f}s infinite}}")
        kind = " typed" if typed else " bad" if re.match(r"E |FAILED|.*\bfailed\b", text) else ""
        lines.append(f'<text y="{(at + 1) * LINE}" class="l{at}{kind}">{escape(text)}</text>')
    scrolls = [
        f"{when / total * 100:.3f}%{{transform:translateY(-{(at + 1 - ROWS) * LINE}px)}}"
        for at, (when, _, _) in enumerate(frames)
        if at >= ROWS
    ]
    styles.append(f"@keyframes scroll{{0%{{transform:translateY(0)}}{''.join(scrolls)}}}")
    box = f'viewBox="0 0 {width:.0f} {height}"'
    return f"""<svg xmlns="http://www.w3.org/2000/svg" role="img" {box}>
<title>pytest --ephemeral-env in a terminal: a run that passes, and one that fails</title>
<style>text{{font:14px/1 ui-monospace,Menlo,Consolas,monospace;fill:#d8dee9;white-space:pre}}
.typed{{fill:#a3be8c;font-weight:bold}}.bad{{fill:#ff8f8f}}
.page{{animation:scroll {total:.2f}s step-end infinite}}
@media (prefers-reduced-motion:reduce){{text,.page{{animation:none!important}}}}
{"".join(styles)}</style>
<rect width="100%" height="100%" rx="8" fill="#1f2430"/>
<svg x="16" y="12" width="{COLUMNS * CHARACTER:.0f}" height="{ROWS * LINE + 6}"><g class="page">
{chr(10).join(lines)}
</g></svg></svg>
"""


def _fold(line: str) -> list[str]:
    return [line[at : at + COLUMNS] for at in range(0, len(line), COLUMNS)] or [""]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        (HERE / "first-run.svg").write_text(draw(record(Path(folder))))
