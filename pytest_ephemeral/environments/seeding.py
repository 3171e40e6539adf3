"""Run the commands of a template inside an environment: ``seed`` and ``reset``."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Final

from pytest_ephemeral.environments import readiness
from pytest_ephemeral.errors import LaunchError
from pytest_ephemeral.masking import mask
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.protocol import Provider

#: The time-out of such a command in seconds; it can't be configured.
STEP_TIMEOUT: Final = 600.0


def run_step(
    what: str, environment: Environment, provider: Provider, command: str, secrets: Sequence[str]
) -> None:
    """Run a command inside an environment that is ready.

    Args:
        what: The command's name in messages: ``seed`` or ``reset``.
        environment: The environment.
        provider: Its provider.
        command: A shell script; it stops at the first command that fails (``-e``).
        secrets: Values to mask in the error message.

    Raises:
        LaunchError: The command failed, or had not ended after ``STEP_TIMEOUT``.
    """
    try:
        done = provider.run(environment, ["/bin/sh", "-ec", command], timeout=STEP_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise LaunchError(
            f"the {what} of {environment.id} had not ended after {STEP_TIMEOUT:g} s: {command}"
        ) from None
    if done.returncode != 0:
        output = mask(f"{done.stdout}{done.stderr}", secrets)
        what = f"the {what} of {environment.id} exited with status {done.returncode}: {command}"
        said = output.rstrip().splitlines()[-readiness.LOG_LINES :]
        text = "\n".join([what, *(f"    {line}" for line in said)])
        raise LaunchError(text + readiness.last_lines(environment, provider))
