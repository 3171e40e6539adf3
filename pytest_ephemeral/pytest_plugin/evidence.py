"""What a failed test's report says of the environment it ran against."""

from __future__ import annotations

import os
import shlex
from typing import Final

import pytest

from pytest_ephemeral.pytest_plugin.lending import Evidence
from pytest_ephemeral.pytest_plugin.settings import Settings

#: More lines than this of one test's share of the log are cut off at the front.
LOG_LINES: Final = 100


def section(
    evidence: Evidence, test: str, config: pytest.Config, settings: Settings
) -> tuple[str, str]:
    """A section of a failed test's report.

    Args:
        evidence: What the environment has to say.
        test: The test's id.
        config: Of this run.
        settings: What this run was told to do.

    Returns:
        Its title and text.
    """
    environment = evidence.environment
    lines = [f"{environment.id}  {environment.url}".rstrip()]
    if evidence.died:
        lines += [evidence.died]
    logs = evidence.logs.rstrip().splitlines()
    lines += ["its log during this test:" if logs else "it printed nothing during this test"]
    if len(logs) > LOG_LINES:
        lines += [f"    ({len(logs) - LOG_LINES} lines more; --ephemeral-logs DIR writes all)"]
    lines += [f"    {line}" for line in logs[-LOG_LINES:]]
    lines += ["run it again:", f"    {rerun(evidence, test, config, settings)}"]
    if evidence.kept and settings.attach is None:
        lines += ["it is left up; destroy it:", f"    {destroy(environment.id, settings)}"]
    return f"ephemeral environment {environment.id}", "\n".join(lines) + "\n"


def rerun(evidence: Evidence, test: str, config: pytest.Config, settings: Settings) -> str:
    """The command that runs one test again: against the same environment, or the same image."""
    words = ["pytest", "--ephemeral-env"]
    if settings.attach is not None:
        words += ["--ephemeral-attach", settings.attach]
    elif evidence.kept:
        words += ["--ephemeral-attach", evidence.environment.id]
    else:
        words += ["--ephemeral-bake", "never"]
        if config.option.ephemeral_template:
            words += ["--ephemeral-template", config.option.ephemeral_template]
    if config.option.ephemeral_config:
        words += ["--ephemeral-config", config.option.ephemeral_config]
    return shlex.join([*words, _from_here(test, config)])


def _from_here(test: str, config: pytest.Config) -> str:
    """A test's id, which begins at rootdir, as it is typed where pytest was started."""
    path, separator, rest = test.partition("::")
    here = os.path.relpath(config.rootpath / path, config.invocation_params.dir)
    return f"{here}{separator}{rest}"


def destroy(id: str, settings: Settings) -> str:
    """The command that destroys an environment."""
    words = ["pytest-ephemeral", "down", id]
    if settings.config is not None:
        words += ["--config", str(settings.config)]
    return shlex.join(words)
