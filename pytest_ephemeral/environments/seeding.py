"""Commands of the user's that are run in an environment: its seed, and its reset."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Final

from pytest_ephemeral import interpolation
from pytest_ephemeral.environments import readiness
from pytest_ephemeral.errors import LaunchError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.protocol import Provider

#: Seconds such a command may take. It has no time-out of its own.
STEP_TIMEOUT: Final = 600.0


def run_step(
    what: str, environment: Environment, provider: Provider, command: str, secrets: Sequence[str]
) -> None:
    """Run a command inside an environment that is ready.

    Args:
        what: What it is for people: ``seed`` or ``reset``.
        environment: Which.
        provider: What it runs on.
        command: A shell command, or several, of which the first that fails is the last.
        secrets: Masked in what it says when it fails.

    Raises:
        LaunchError: It failed, or took too long.
    """
    try:
        done = provider.run(environment, ["/bin/sh", "-ec", command], timeout=STEP_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise LaunchError(
            f"the {what} of {environment.id} had not ended after {STEP_TIMEOUT:g} s: {command}"
        ) from None
    if done.returncode != 0:
        output = interpolation.mask(f"{done.stdout}{done.stderr}", secrets)
        what = f"the {what} of {environment.id} exited with status {done.returncode}: {command}"
        said = output.rstrip().splitlines()[-readiness.LOG_LINES :]
        raise LaunchError(
            "\n".join(
                [
                    what,
                    *(f"    {line}" for line in said),
                ]
            )
            + readiness.last_lines(environment, provider)
        )
