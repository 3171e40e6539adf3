"""Find out whether folders can be mounted for an environment alone."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from pytest_ephemeral.providers.local.supervisor.tree_mounts import find_base


@functools.cache
def refusal() -> str:
    """Why nothing can be mounted for an environment alone, or empty; tried once, in a process."""
    if sys.platform != "linux":
        return "only Linux has mount namespaces"
    import subprocess

    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from supervisor import view; "
        "print(view.protect(['/']), end='')"
    )
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    return (found.stdout or found.stderr).strip()


def refusal_at(path: str) -> str:
    """Why nothing can be mounted at a path for an environment alone, or empty."""
    if why := refusal():
        return why
    try:
        find_base(path)
    except OSError as error:
        return str(error.strerror)
    return ""
