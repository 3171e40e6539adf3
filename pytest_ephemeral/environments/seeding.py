"""Seed data: a command of the user's, run once in a new environment."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Final

from pytest_ephemeral import interpolation
from pytest_ephemeral.environments import readiness
from pytest_ephemeral.errors import LaunchError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.protocol import Provider

#: Seconds a seed may take. It has no time-out of its own.
SEED_TIMEOUT: Final = 600.0


def seed(
    environment: Environment, provider: Provider, command: str, secrets: Sequence[str]
) -> None:
    """Run the seed inside an environment that is ready.

    Args:
        environment: Which.
        provider: What it runs on.
        command: A shell command.
        secrets: Masked in what it says when it fails.

    Raises:
        LaunchError: It failed, or took too long.
    """
    try:
        done = provider.run(environment, ["/bin/sh", "-c", command], timeout=SEED_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise LaunchError(
            f"the seed of {environment.id} had not ended after {SEED_TIMEOUT:g} s: {command}"
        ) from None
    if done.returncode != 0:
        output = interpolation.mask(f"{done.stdout}{done.stderr}", secrets)
        said = output.rstrip().splitlines()[-readiness.LOG_LINES :]
        raise LaunchError(
            "\n".join(
                [
                    f"the seed of {environment.id} exited with status {done.returncode}: {command}",
                    *(f"    {line}" for line in said),
                ]
            )
            + readiness.last_lines(environment, provider)
        )
