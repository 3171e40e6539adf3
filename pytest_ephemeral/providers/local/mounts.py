"""Whether something can be mounted for an environment alone."""

from __future__ import annotations

import functools
import sys
from pathlib import Path


@functools.cache
def refusal() -> str:
    """Why nothing can be mounted for an environment alone; tried once, in a process of its own."""
    if sys.platform != "linux":
        return "only Linux has mount namespaces"
    import subprocess

    program = Path(__file__).with_name("supervisor") / "kernel.py"
    code = "import runpy, sys; print(runpy.run_path(sys.argv[1])['protect'](['/']), end='')"
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    return (found.stdout or found.stderr).strip()
